# Every target sets up what it needs: a virtual environment in VENV with the tested versions.
PYTHON ?= python3
PYTHONS ?= python3.11 python3.12 python3.13
DEVICES ?= auto
NODES ?= 1
CONFIG ?= configs/hubert_base_ls960.yaml
ARGS ?=
JOBS ?= 2

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
# Decoding workers and test processes share the cores; torch's default of all cores a process
# makes them fight.
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo notebooks test test-pythons test-newest lint format types docs bench \
	train train-ddp clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Virtual environment in VENV (.venv) with the versions of constraints.txt
ifneq ($(origin PYTHON),file)
	@is=$$($(BIN)/python -c '$(VERSION)'); asked=$$($(PYTHON) -c '$(VERSION)'); \
	[ "$$is" = "$$asked" ] || { echo "PYTHON is $$asked, but $(VENV) is of Python $$is:" \
		"give VENV=.venv-$$asked, or remove $(VENV)" >&2; exit 1; }
endif

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) \
		--editable '.[dev]'
	@touch $@

demo: setup ## Watch a student grow from 3 to 12 layers on real speech, and see what it has learnt
	$(BIN)/python -m interstack.cli fit --config configs/interleaved.yaml $(ARGS)
	$(BIN)/python -m interstack.cli probe --corpus assets/speech \
		--upstream runs/interleaved/student --upstream assets/teacher \
		--upstream log-mel --upstream random:runs/interleaved/student
	$(BIN)/python -m interstack.cli report runs/interleaved -o runs/interleaved/report.html

notebooks: setup ## Run the notebooks on what `make demo` has left, and keep their outputs
	for each in notebooks/*.ipynb; do $(BIN)/jupyter execute --inplace $$each || exit 1; done

test: setup lint types docs ## Lint, types, documentation and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

test-pythons: ## Before a release: make test under each of PYTHONS, in .venv-3.11 and so on
	for python in $(PYTHONS); do \
		version=$$($$python -c '$(VERSION)') && \
		$(MAKE) test PYTHON=$$python VENV=.venv-$$version || exit 1; \
	done

test-newest: ## The suite with the newest release of every dependency, in .venv-newest
	rm -rf .venv-newest
	$(MAKE) setup VENV=.venv-newest CONSTRAINTS=
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest --numprocesses $(JOBS) $(ARGS)

lint: setup ## Format and lint as committed code has to be
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: setup ## Static types, strict
	$(BIN)/mypy

docs: setup ## Build the documentation in site/; warnings and dead links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup ## Time every lever on this machine; ARGS=--record adds it to the project's records
	$(BIN)/python -m benchmarks $(ARGS)

train: setup ## Train CONFIG on this machine; ARGS go to the command line
	$(BIN)/python -m interstack.cli fit --config $(CONFIG) $(ARGS)

train-ddp: setup ## Train CONFIG on DEVICES processes a node and NODES nodes with DDP
	$(BIN)/python -m interstack.cli fit --config $(CONFIG) --trainer.strategy ddp \
		--trainer.devices $(DEVICES) --trainer.num_nodes $(NODES) $(ARGS)

clean: ## Remove the virtual environments and caches, never runs
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info site
