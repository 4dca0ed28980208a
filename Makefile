# Short targets that both people and CI run. Everything happens in .venv, which the first target creates.

PYTHON ?= python3
VENV ?= .venv
EXTRAS := cpu,openvino,export,train,eval,bench
# TensorRT-RTX, which builds engines without a GPU, has no wheels for other systems.
ifeq ($(shell uname -sm),Linux x86_64)
EXTRAS := $(EXTRAS),tensorrt-rtx
endif
# Never `.`: the links at the repository's root would list the same files again under other names.
SOURCES := blip3v tests scripts benchmarks

PIP := $(VENV)/bin/python -m pip install --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test engines slow check bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Export, check, ask and measure on a real clip
	$(VENV)/bin/blip3v demo

test: $(VENV)/.installed-dev ## Run the test suite
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

engines: $(VENV)/.installed-dev ## Build TensorRT-RTX engines of the shipped models, which needs no GPU
	$(VENV)/bin/python -m pytest -m slow tests/export/test_tiny_engines.py

slow: $(VENV)/.installed-dev ## Test what takes minutes: whole runs of scripts, training in several processes
	$(VENV)/bin/python -m pytest -m slow tests/scripts tests/benchmarks tests/training

check: $(VENV)/.installed-dev ## Check lint, format, types and layers; changes no file
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/mypy --strict $(SOURCES)
	$(VENV)/bin/lint-imports

bench: $(VENV)/.installed ## Measure samples per second against the 1024-token baseline
	$(VENV)/bin/blip3v bench

clean: ## Remove .venv and all caches, but no trained model or bundle
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

# Stamps: an installation runs once, and again when its dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[$(EXTRAS)]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --quiet --editable ".[$(EXTRAS),dev]"
	@touch $@
