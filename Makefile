# Two commands: `make reproduce` runs the main job, `make test` the tests. Each makes the environment if it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PROFILE ?= quick
DEVICE ?= cpu

.PHONY: setup reproduce test bench lab lint notebooks

setup: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v == (3, 11) else f"Python 3.11 expected, this is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

reproduce: setup
	$(BIN)/tvrkit reproduce --profile $(PROFILE) --device $(DEVICE)

# Two workers share the cores: threads of their own would wait for each other (notebooks: 2 minutes, with them over 7).
test: export OMP_NUM_THREADS = 1
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile tests
	TVRKIT_HOME=$$(mktemp -d) $(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-cell-timeout 300 notebooks

bench: setup
	$(BIN)/python -m pytest --benchmark-only --benchmark-columns=median,rounds -o addopts= -o python_files='bench_*.py' \
		-o python_functions='bench_*' tests/benchmarks

lab: setup
	$(BIN)/jupyter lab notebooks

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format .

# Run the notebooks on the smoke profile and store their outputs: what nbval compares with, and GitHub shows.
notebooks: setup
	$(BIN)/python tests/refresh_notebooks.py notebooks/*.ipynb
