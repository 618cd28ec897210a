# Every target works on a fresh clone: .venv is made when it is missing and renewed when the requirements change.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Extras that the tests use. Heavier simulators are optional: make test EXTRAS=dev,sb3,study,robosuite
EXTRAS ?= dev,sb3,study

.PHONY: dream test lint check fix wheel clean

dream: $(VENV)/.core
	$(BIN)/kairos dream

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation

# torch goes first and pinned: a package that asks for a range would pull a CUDA build of several GB.
$(VENV)/.core: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "setuptools>=77" torch numpy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
