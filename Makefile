# `make demo` and `make test` need nothing but Python 3.11 or later. Both make their environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
# On a Linux machine without a GPU, PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" saves gigabytes.
PIP_FLAGS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready

.PHONY: help demo test test-slow test-memory test-frameworks test-notebooks attack check docs format bench mutation wheel clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What a demo needs; what tests and checks need comes on top.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "making $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python scripts/install.py $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

$(READY): $(INSTALLED)
	@$(BIN)/python scripts/install.py $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED) ## train handwritten digits by dual propagation and by back-propagation; table and pictures
	$(BIN)/dualprop compare digits-mlp

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-slow: $(READY) ## run the slow, statistical tests
	$(BIN)/python -m pytest -m slow

test-memory: $(READY) ## 20,000 steps of every variant, in memory that stays flat
	$(BIN)/python -m pytest -m slow tests/slow/test_flat_memory.py

test-frameworks: $(READY) ## install Lightning, Accelerate, the Trainer, ONNX, W&B and MLflow, and run the tests inside them
	@$(BIN)/python scripts/install.py $(PIP_FLAGS) -c constraints.txt -e ".[frameworks]"
	$(BIN)/python -m pytest -m frameworks

test-notebooks: $(READY) ## install Jupyter's kernel, and run the notebooks of examples/ from top to bottom
	@$(BIN)/python scripts/install.py $(PIP_FLAGS) -c constraints.txt -e ".[notebooks]"
	$(BIN)/python -m pytest -m notebooks

attack: $(READY) ## an hour of hostile options, damaged run folders and kills; MINUTES=5 SEED=1 for others
	$(BIN)/python scripts/attack.py --minutes $(or $(MINUTES),60) --seed $(or $(SEED),0) --out attack.json

check: $(READY) ## lint, formatting, types; whether each planted defect still finds its line
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/mutation_test.py --check

docs: $(READY) ## build the docs site into build/docs; any warning or dead link is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

format: $(READY) ## put the code in its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## time and memory of a step against a plain PyTorch loop
	$(BIN)/dualprop bench

mutation: $(READY) ## plant one-line defects and see that the tests catch each
	$(BIN)/python scripts/mutation_test.py

wheel: $(READY) ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## remove the environment and what was built
	rm -rf $(VENV) dist build *.egg-info
