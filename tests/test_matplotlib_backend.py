"""Programs that plot start with any backend that the environment names."""

import os
import subprocess
import sys

import pytest

MISSING, NONSENSE = "module://no_such_module.backend_inline", "nonsense"


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("image_diffusion_todo/train.py", MISSING),
        ("report/figures.py", NONSENSE),
        ("report/swiss_roll_floor.py", MISSING),
        ("2d_plot_diffusion_todo/ddpm_tutorial.py", NONSENSE),
    ],
)
def test_programs_start_where_a_notebook_exports_a_backend_that_is_not_installed(request, name, backend):
    environment = os.environ | {"MPLBACKEND": backend}
    run = subprocess.run(
        [sys.executable, request.config.rootpath / name, "--help"], env=environment, capture_output=True
    )
    assert run.returncode == 0, run.stderr
