# The verbs of swaa. `make quickstart` and `make test` set up whatever they need; a second run reuses it.

# The first Python on the PATH that is new enough. Another one: make PYTHON=/path/to/python3.11 …
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.swaa-ready
MODEL := smollm2-135m-instruct
# pytest-xdist's workers. One thread each (tests/conftest.py), so that they do not fight over the cores.
JOBS ?= 2
CPU_INDEX := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint types docs oldest wheels clean

help:  ## Show the verbs.
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

quickstart: $(READY)  ## Install, fetch the default model, run the main job on it.
	$(BIN)/swaa fetch $(MODEL)
	$(BIN)/swaa run experiments/quickstart.yaml

test: $(READY)  ## Run every test but those of `make docs`; the timed ones alone, after the others.
	$(BIN)/pytest -q -n $(JOBS) --dist worksteal --durations 20 --ignore tests/benchmarks --ignore-glob "*/test_docs*"
	@if [ -d tests/benchmarks ]; then set -x; $(BIN)/pytest -q tests/benchmarks; fi

lint: $(READY)  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## Check the types of src, strictly.
	$(BIN)/mypy

docs: $(READY)  ## Build the site into docs/_build/html, no warning allowed; test what the pages say and link to.
	rm -rf docs/_build
	$(BIN)/sphinx-build -q -n -W --keep-going docs docs/_build/html
	$(BIN)/pytest -q -n $(JOBS) --dist worksteal tests/test_docs.py tests/test_docs_site.py

oldest:  ## Run the tests on the oldest torch and transformers that swaa takes (they bring gigabytes; 20 minutes).
	"$(PYTHON)" -m venv .venv-oldest
	sed -E '/^(torch|transformers|huggingface_hub|tokenizers)==/d' constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip install -q -c .venv-oldest/constraints.txt \
		$$(sed -nE 's/^ *"((torch|transformers|huggingface-hub)>=[0-9.]+)".*/\1/p' pyproject.toml | sed 's/>=\(.*\)/==\1.*/') -e '.[dev]'
	.venv-oldest/bin/pytest -q -n $(JOBS) --dist worksteal --hypothesis-profile=quick --ignore-glob "*/test_docs*"

wheels: $(READY)  ## Pack swaa, and what a machine with torch and transformers may lack, into .wheels (no network there).
	rm -rf .wheels
	$(BIN)/pip wheel -q --no-deps -w .wheels . $$(sed -nE '/^(gguf|omegaconf|peft|rich)==/p' constraints.txt)

clean:  ## Remove what the tools left. The environment and the fetched models stay.
	rm -rf build dist .wheels .venv-oldest docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The CPU build of torch is asked for first and alone, because plain PyPI serves gigabytes of CUDA under the same
# version, and because an index that cannot be reached costs time once here and not once per package. pip looks in its
# configured places too (find-links), so this works on a machine that has the wheel but no network. Where no CPU
# build can be had, the next line takes PyPI's, which runs on the CPU as well. With a CUDA device, PyPI's is wanted.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "swaa needs Python 3.11 or newer, and there is none on the PATH." \
		"Install one, or name it: make PYTHON=/path/to/python3.11"; exit 1; } >&2
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
		f"swaa needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Name another: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) could not make" \
		"a virtual environment (on Debian and Ubuntu: apt install python3-venv)."; exit 1; } >&2
	@nvidia-smi >/dev/null 2>&1 || $(BIN)/python -c 'import torch' 2>/dev/null || { set -x; \
		$(BIN)/pip install --no-deps --retries 1 --timeout 30 --index-url $(CPU_INDEX) -c constraints.txt torch || true; }
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	@touch $@
