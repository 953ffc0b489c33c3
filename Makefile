# All targets need Python 3.10 or newer. The first call builds .venv; later calls use it until the requirements change.

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python

.PHONY: help demo cats bench report submission test test-all lint format clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## small versions of both tasks: the Swiss roll, then synthetic animal faces (minutes)
	$(PY) report/demo.py

cats: $(VENV)/.installed  ## sample 16 cats of 64x64 with the model that comes with the project (a minute)
	rm -rf image_diffusion_todo/samples/cats64
	cd image_diffusion_todo && $(abspath $(PY)) sampling.py --ckpt_path ../report/models/cats64.ckpt --save_dir samples/cats64 \
		--num_samples 16 --sample_method dpm --last_timestep 75
	cd image_diffusion_todo && $(abspath $(PY)) image_grid.py samples/cats64 --out samples/cats64.png --per_row 4

bench: $(VENV)/.installed  ## short benchmarks of training and FID (minutes)
	$(PY) benchmarks/training.py
	$(PY) benchmarks/fid.py --dims 192 --real 300 --generated 100

report: $(VENV)/.installed-dev  ## build report/report.pdf and the READMEs' tables; AUTHOR="..." puts a name on it
	$(PY) report/build.py --author "$(AUTHOR)"
	$(PY) report/doc_tables.py

submission: $(VENV)/.installed-dev  ## make the zip of the submission: make submission ID=412551014 AUTHOR="..."
	@test -n "$(ID)" || { echo 'make submission: the ID is missing: make submission ID=412551014 AUTHOR="..."' >&2; exit 2; }
	$(MAKE) report
	$(PY) report/submission.py --id "$(ID)"

test: $(VENV)/.installed-dev  ## run the tests, on up to four cores
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

test-all: $(VENV)/.installed-dev  ## run all tests, including the slow ones
	$(PY) -m pytest -m '' -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.installed-dev  ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(VENV)/.installed-dev  ## fix style and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove the environment and caches; results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
