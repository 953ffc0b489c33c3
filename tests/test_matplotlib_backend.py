"""Programs that draw start with whatever backend the environment names."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "image_diffusion_todo/train.py",
        "report/figures.py",
        "report/swiss_roll_floor.py",
        "2d_plot_diffusion_todo/ddpm_tutorial.py",
    ],
)
def test_programs_start_where_a_notebook_exports_a_backend_that_is_not_installed(request, name):
    for backend in ("module://no_such_module.backend_inline", "nonsense"):
        environment = os.environ | {"MPLBACKEND": backend}
        run = subprocess.run(
            [sys.executable, request.config.rootpath / name, "--help"], env=environment, capture_output=True
        )
        assert run.returncode == 0, run.stderr
