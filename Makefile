# make demo: from a bare clone to the result of the demo.  make help lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# The distribution's Python if it can make environments: it is optimized. With others, such as pyenv's, Ansible takes a quarter longer.
PYTHON ?= $(shell /usr/bin/python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)
VENV := .venv
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# Lines come one by one also where they go into a pipe, not by the block.
export PYTHONUNBUFFERED ?= 1
export ANSIBLE_FORCE_COLOR ?= $(if $(MAKE_TERMOUT),1,0)
# The unit tests wait half of their time. More than 16 processes take memory and save nothing.
UNIT_WORKERS ?= $(shell workers=$$((2 * $$(nproc))); echo $$((workers < 16 ? workers : 16)))
# Before a call of uv: the index that pip is set to.
WITH_INDEX = INDEX=$$($(VENV)/bin/python -m pip config get global.index-url 2>/dev/null || true); UV_DEFAULT_INDEX=$${UV_DEFAULT_INDEX:-$$INDEX}
# One lock for every platform. Versions that are locked already stay, unless UPGRADE is set.
COMPILE = uv pip compile --quiet $(if $(UPGRADE),--upgrade) --universal --no-python-downloads --generate-hashes --no-annotate --no-header --no-emit-index-url
# Certificates of the machine: a proxy may need them.
export UV_SYSTEM_CERTS := true
# Where sudo wants a password, Ansible asks for it.
export ANSIBLE_BECOME_ASK_PASS ?= $(if $(ROOT),$(shell sudo -n true 2>/dev/null && echo 0 || echo 1),0)

.PHONY: compiler rsync help demo test lint unit molecule test-faults test-tunnel test-cuda test-gpu test-browser bench hooks changelog lab-check lab-down environment lock role-docs clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: lab-check environment ## Create the lab, turn it into a cluster, run the demo on it
	ansible-playbook site.yml run_demo.yml
	@echo; cat output/latest/summary.txt

test: lab-check environment compiler lint unit molecule ## Lint, unit tests, Molecule scenarios

lint: environment ## Only the lint
	ansible-lint --offline --strict
	yamllint --strict .
	ruff check .
	ruff format --check .
	mypy
	antsibull-changelog lint

unit: environment ## Only the unit tests
	pytest -n $(UNIT_WORKERS) --dist worksteal

molecule: lab-check environment compiler ## Only the Molecule scenarios; SCENARIO=default for one
	tests/molecule $(SCENARIO)

test-faults: lab-check environment ## Cause failures in labs and print their outcomes (docs/faults.md); trainings that lose machines
	tests/molecule faults shared

test-tunnel: lab-check environment ## Encrypt a lab's traffic, watch its network, and print what the encryption costs
	tests/molecule tunnel

test-cuda: lab-check environment compiler ## CUDA's packages without a GPU, with the driver's packages and with a stand-in for the driver
	tests/molecule cuda gpu_servers

test-gpu: environment ## GPUs, on a machine that has one and its driver; skips elsewhere
	@if command -v nvidia-smi >/dev/null; then \
	  uv venv --quiet --allow-existing .cache/gpu && VIRTUAL_ENV=.cache/gpu uv pip sync --quiet --require-hashes roles/tensorflow/files/gpu.txt && \
	  .cache/gpu/bin/python -I -S files/tf_cluster/tensorflow/cuda_libraries.py .cache/gpu/lib/python*/site-packages; fi
	GPU_PYTHON=$(CURDIR)/.cache/gpu/bin/python pytest -rs tests/gpu

test-browser: lab-check environment ## report.html and the interactive examples in a real browser; installs Chromium if it is missing
	@command -v chromium >/dev/null || { $(ROOT) apt-get update -q && $(ROOT) apt-get install -q -y --no-install-recommends chromium; } \
	  || echo "Chromium is missing and could not be installed. Install the package chromium."
	pytest -rs tests/browser
	tests/molecule browser

bench: environment ## Compare our servers with other systems (docs/benchmark.md) in 12 minutes; these take 9 GB; ROUNDS=5
	@$(WITH_INDEX) python tests/bench/bench.py $(ROUNDS)

lab-check: # Report within seconds if the lab cannot run here
	@$(PYTHON) roles/lab/files/lab_check.py

compiler: # Install a C compiler: the tests compile a stand-in for the NVIDIA driver
	@command -v cc >/dev/null || { $(ROOT) apt-get update -q && $(ROOT) apt-get install -q -y --no-install-recommends gcc libc6-dev; }

lab-down: environment ## Remove the lab; packages that were installed for it stay
	ansible-playbook playbooks/lab_down.yml

rsync: # Install rsync, which transfers data and results
	@command -v rsync >/dev/null || { $(ROOT) apt-get update -q && $(ROOT) apt-get install -q -y --no-install-recommends rsync; } \
	  || echo "rsync is missing and could not be installed: install it"

environment: rsync $(VENV)/complete ## Only the environment (.venv) that all the commands need

$(VENV)/complete: requirements.txt
	@test ! -L $(VENV) || { echo "$(VENV) is a link to $$(readlink $(VENV)), whose files would be removed. Remove the link, or call the commands without make."; exit 1; }
	@echo "Making the environment in $(VENV): Ansible, Molecule and the linters, as locked in requirements.txt"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "This controller has Python %d.%d. Install Python 3.11 or newer and name it: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(ROOT) apt-get update -q && $(ROOT) apt-get install -q -y --no-install-recommends python3-venv; }
	@$(PYTHON) -m venv --clear $(VENV)
	@grep -A99 '^uv==' requirements.txt | sed '1!{/^[a-z]/,$$d}' | $(VENV)/bin/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes -r /dev/stdin
	@$(WITH_INDEX) uv pip sync --quiet --require-hashes requirements.txt
	@# Compiled once, not by each of Ansible's processes where Python may not write. Collections: the few modules that are used.
	@$(VENV)/bin/python -m compileall -q -j0 -x ansible_collections $(VENV)/lib plugins
	@touch $@

lock: environment ## Update requirements.txt and the machines' lists from their .in files; UPGRADE=1 for the newest versions
	$(COMPILE) --python-version 3.11 requirements.in --output-file requirements.txt
	$(COMPILE) --python-version 3.10 --overrides roles/tensorflow/files/cpu.in roles/tensorflow/files/cpu.in --output-file roles/tensorflow/files/cpu.txt
	$(COMPILE) --python-version 3.10 --constraints roles/tensorflow/files/cpu.txt roles/tensorflow/files/gpu.in --output-file roles/tensorflow/files/gpu.txt
	$(COMPILE) --python-version 3.10 --constraints roles/tensorflow/files/cpu.txt roles/tensorflow/files/gpu_kernels.in --output-file roles/tensorflow/files/gpu_kernels.txt
	for list in tests/bench/requirements/{ray,dask,torch}; do \
	  $(COMPILE) --python-version 3.11 $$list.in --output-file $$list.txt; done

changelog: environment ## Move the fragments into the release notes of the version in galaxy.yml
	antsibull-changelog release --update-existing --reload-plugins

hooks: environment ## Check each commit in this clone before it is made (pre-commit)
	pre-commit install

role-docs: environment ## Write the README of each role from its argument_specs.yml
	python docs/role_docs.py

clean: ## Remove the environment and the fetched packages; runs in output/ stay
	rm -rf $(VENV) .cache .ansible ~/.cache/tf-cluster
