# Two commands: `make reproduce` runs the main job, `make test` the tests. Each makes the environment if it is missing.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && command -v $(name))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
PROFILE ?= quick
DEVICE ?= cpu

.PHONY: setup reproduce test bench lab lint notebooks lock

setup: .venv/.installed

# The lock holds everything with its hash. A CUDA build of torch asks for NVIDIA's libraries, which have a lock of their own.
.venv/.installed: requirements.lock requirements-cuda.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 expected, none found: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -c 'import ensurepip' || { echo "Python's venv is missing: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --require-hashes --requirement requirements.lock
	if $(BIN)/python -c 'from importlib.metadata import requires as r; exit("nvidia" not in str(r("torch")))'; \
		then $(PIP) --require-hashes --requirement requirements-cuda.lock; fi
	$(PIP) --editable .
	touch $@

reproduce: setup
	$(BIN)/tvrkit reproduce --profile $(PROFILE) --device $(DEVICE)

# Two workers share the cores: threads of their own would wait for each other (notebooks: 2 minutes, with them over 7).
test: export OMP_NUM_THREADS = 1
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile tests
	TVRKIT_HOME=$$(mktemp -d) $(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-cell-timeout 300 notebooks

bench: setup
	$(BIN)/python -m pytest --benchmark-only --benchmark-columns=median,rounds -o addopts= -o python_files='bench_*.py' \
		-o python_functions='bench_*' tests/benchmarks

lab: setup
	$(BIN)/jupyter lab notebooks

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Run the notebooks on the smoke profile and store their outputs: what nbval compares with, and GitHub shows.
notebooks: setup
	$(BIN)/python tests/refresh_notebooks.py notebooks/*.ipynb

# Resolve pyproject.toml anew for every Python and platform (needs uv, from PyPI).
lock:
	.ci/lock
