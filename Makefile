# make demo | view | test | simulate | setup | check | clean
# PYTHON=python3.12       the interpreter of a new .venv (3.11 or newer)
# TORCH_INDEX=URL         take PyTorch from another index, such as its CPU-only one

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A model.py in the current folder must not stand in for our package `model`.
export PYTHONSAFEPATH := 1

.PHONY: help demo view test simulate setup check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    videos to a registered model, on two built-in portraits (sets itself up)"
	@echo "make view    turn and play the model that ships, in the browser (sets itself up)"
	@echo "make test    all tests (sets itself up)"
	@echo "make simulate  100,000 interleavings of two runs, and every crash point (ARGS='--seed N' replays one)"
	@echo "make setup   only the environment: $(BIN)/pv3d"
	@echo "make check   lint, types, import directions"
	@echo "make clean   remove the environment and the demo's run"

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH:$(CURDIR)/$(VENV)/sh" $(BIN)/pv3d run --profile demo

view: setup
	@$(BIN)/pv3d view --open $(ARGS)

test: setup
	@$(BIN)/python -m pytest $(ARGS)

simulate: setup
	@OMP_NUM_THREADS=1 $(BIN)/python tests/simulation/simulate.py $(ARGS)

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

setup: $(VENV)/installed

# DeepSpeed's installer and Ray's workers call bash; where it is missing, sh serves as well.
$(VENV)/installed: pyproject.toml constraints.txt requirements-no-deps.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pv3d needs Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 2; }
	@echo "setting up $(VENV); this happens once (the README says how much is downloaded)"
	@start=$$(date +%s); \
		$(PYTHON) -m venv $(VENV) && \
		mkdir -p $(VENV)/sh && { command -v bash >/dev/null || ln -sf /bin/sh $(VENV)/sh/bash; } && \
		PATH="$$PATH:$(CURDIR)/$(VENV)/sh" && export PATH && \
		$(if $(TORCH_INDEX),$(PIP) install -q --index-url $(TORCH_INDEX) -c constraints.txt torch &&) \
		$(PIP) install -q -c constraints.txt -e '.[all,dev]' && \
		$(PIP) install -q -c constraints.txt --no-deps -r requirements-no-deps.txt && \
		touch $@ && echo "set up in $$(( $$(date +%s) - start )) s"

clean:
	rm -rf $(VENV) runs build *.egg-info
