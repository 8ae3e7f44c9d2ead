# `make demo` and `make test` are all that a fresh machine needs. PYTHON=python3.12 chooses another interpreter.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
EXTRAS := rlds,metaworld,aloha,lerobot,quant,export,serve,tensorboard,wandb,dev
STAMP := $(VENV)/.installed
LIBERO_STAMP := $(VENV)/.installed-libero

.DEFAULT_GOAL := help
.PHONY: help install system-packages demo improve-demo libero-smoke aloha-smoke test test-world lint clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP) ## Create .venv and install the project with what the demo and the tests need

$(STAMP): pyproject.toml constraints.txt scripts/install.sh | system-packages
	@bash scripts/install.sh $(VENV) "$(EXTRAS)"
	@touch $@

system-packages:
	@bash scripts/system_packages.sh $(if $(filter demo improve-demo test test-world libero-smoke aloha-smoke,$(MAKECMDGOALS)),--install)

demo: install ## Record, convert, fine-tune and evaluate in a simulator, end to end (CPU is enough)
	$(PY) scripts/demo.py

improve-demo: install ## Two rounds in which the demo's policy gets better by acting (HG-DAgger); makes the demo first where it is not there
	[ -f runs/demo/train/demo/policy.json ] || $(PY) scripts/demo.py
	$(PY) scripts/improve.py --pretrained_checkpoint runs/demo/train/demo --demonstrations "[runs/demo/recordings]" --output_dir runs/improve_demo \
	    --num_rounds 2 --patience 2 --num_rollouts 15 --num_trials 20 --num_final_trials 40 --max_steps 200

libero-smoke: $(LIBERO_STAMP) ## One trial per task of LIBERO-Spatial with an untrained policy (installs the simulator, 1.3 GB on disk)
	$(PY) scripts/libero_smoke.py

aloha-smoke: install ## One rollout per task of gym-aloha with an untrained policy, in one process and through a server
	$(PY) scripts/aloha_smoke.py

$(LIBERO_STAMP): $(STAMP)
	@bash scripts/install.sh $(VENV) libero
	@touch $@

test: install ## Run every test that this machine can run
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-world: $(LIBERO_STAMP) ## Tests against other people's packages: LIBERO's simulator, published clients, LeRobot (installs them)
	PRISMATIC_CLIENT_TESTS=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m "clients or sim" tests/smoke/test_deploy.py \
	    tests/smoke/test_lerobot_oracle.py tests/smoke/test_lerobot_robots.py tests/smoke/test_lerobot_policy.py tests/smoke/test_libero.py tests/smoke/test_libero_regeneration.py

lint: install ## Ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean: ## Remove .venv and build leftovers (keeps runs/)
	rm -rf $(VENV) build dist *.egg-info
