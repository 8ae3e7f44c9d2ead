# `make demo` and `make test` are all that a fresh machine needs. PYTHON=python3.12 chooses another interpreter.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
EXTRAS := rlds,metaworld,aloha,lerobot,quant,serve,tensorboard,dev
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install system-packages demo test lint clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP) ## Create .venv and install the project with what the demo and the tests need

$(STAMP): pyproject.toml constraints.txt scripts/install.sh | system-packages
	@bash scripts/install.sh $(VENV) "$(EXTRAS)"
	@touch $@

system-packages:
	@bash scripts/system_packages.sh $(if $(filter demo test,$(MAKECMDGOALS)),--install)

demo: install ## Record, convert, fine-tune and evaluate in a simulator, end to end (CPU is enough)
	$(PY) scripts/demo.py

test: install ## Run every test that this machine can run
	$(PY) -m pytest

lint: install ## Ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean: ## Remove .venv and build leftovers (keeps runs/)
	rm -rf $(VENV) build dist *.egg-info
