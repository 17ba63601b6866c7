# Two commands: `make reproduce` runs the main job, `make test` the tests. Each makes the environment if it is missing.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && command -v $(name))))
BIN := .venv/bin
PROFILE ?= quick
DEVICE ?= cpu

# Some containers set it: then each process that is started compiles every module anew.
unexport PYTHONDONTWRITEBYTECODE
# Large tensors on large pages: a step asks the system for tens of megabytes hundreds of times (docs/performance.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: setup reproduce test tests types stored bench lab lint notebooks lock

setup: .venv/.installed

.venv/.installed: .ci/setup requirements.lock requirements-cuda.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 expected, none found: make PYTHON=/path/to/python3"; exit 1; }
	.ci/setup $(PYTHON) .venv
	touch $@

reproduce: setup
	$(BIN)/tvrkit reproduce --profile $(PROFILE) --device $(DEVICE)

# All at once: one often waits for a process that it has started. Workers share the cores: threads of their own would wait
# for each other (notebooks: 2 minutes, with them over 7).
test: export OMP_NUM_THREADS = 1
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs 3 tests types stored

tests: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

types: setup
	$(BIN)/mypy

# The notebooks give the outputs that are stored in them; told when all have.
stored: setup
	told=$$(TVRKIT_HOME=$$(mktemp -d) $(BIN)/python -m pytest --nbval --nbval-cell-timeout 300 notebooks 2>&1) \
		&& echo "$$told" | tail -n 1 || { echo "$$told"; exit 1; }

bench: setup
	$(BIN)/python -m pytest --benchmark-only --benchmark-columns=median,rounds -o addopts= -o python_files='bench_*.py' \
		-o python_functions='bench_*' --benchmark-json=docs/performance.json tests/benchmarks
	$(BIN)/python -m tests.benchmarks.table docs/performance.json docs/performance.md

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
