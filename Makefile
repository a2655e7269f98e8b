# Everything that is done with flanpy from a checkout. `make help` lists the targets.
# The first use installs what is missing: Debian packages (needs root), .venv with pinned dependencies, the C extension.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
export PYTHONUNBUFFERED := 1

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Files of tests at a time: most tests wait more than they compute.
JOBS ?= 4
MINUTES ?= 60
BIN := $(VENV)/bin
# What runs in the virtual machine: whatever needs kernel options that many a kernel lacks.
VM_TESTS := tests/netns/test_kernel_tunnels.py tests/netns/test_ipip_cluster.py tests/netns/test_wireguard_cluster.py \
	tests/netns/test_dual_stack_clusters.py tests/netns/test_ebpf_rest.py tests/vm/stock_ebpf.py
STAMP := build/.built
SOURCES := $(shell find csrc -name '*.[ch]' -not -path 'csrc/fuzz/*') $(wildcard flanpy/*/*_build.py) setup.py pyproject.toml

.PHONY: help setup build demo test test-unit test-vm bench fuzz lint format reference docs reliability pin clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing: Debian packages (root), .venv
	@PYTHON="$(PYTHON)" scripts/setup packages
	@scripts/setup venv $(VENV) $(PYTHON)

$(STAMP): $(SOURCES) | setup
	@mkdir -p build && echo "setup: building the C extension" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . \
		>build/build.log 2>&1 || { cat build/build.log >&2; exit 1; }
	@touch $@

build: setup $(STAMP) ## build the C extension into the checkout

demo: build ## three hosts, six pods, one overlay, on this machine (root)
	@$(BIN)/flanpy lab demo $(ARGS)

test: build ## the whole suite (root), several files at a time; ARGS go to pytest
	@$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder $(ARGS)

test-unit: build ## only what needs no root
	@$(BIN)/python -m pytest tests/unit tests/packets $(ARGS)

test-vm: build ## what this kernel may lack (wireguard, ipip, VLANs) and ebpf on a stock Debian kernel in a virtual machine (root)
	@FLANPY_TEST_SLOWNESS=15 scripts/run-in-vm --timeout 3000 -- $(BIN)/python -m pytest -p no:cacheprovider --timeout=1200 $(or $(ARGS),$(VM_TESTS))

bench: build ## the benchmark suite, results in bench-results/; ARGS go to flanpy bench
	@$(BIN)/flanpy bench $(ARGS)

fuzz: build ## libFuzzer on every parser; ARGS="TARGET SECONDS" for one of them
	@csrc/fuzz/build.sh run $(ARGS)

lint: build ## ruff and mypy strict (the suite compiles the C core with all warnings as errors)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: build ## let ruff format the Python files
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

reliability: build ## run the tests of all faults and write docs/reliability.md from what they measured (root)
	@FLANPY_CHURN_SECONDS=60 $(BIN)/python scripts/reliability.py run $(ARGS)

soak: build ## five hosts under traffic with random faults for MINUTES (60), invariants at the end; FLANPY_SOAK_SEED=N repeats (root)
	@FLANPY_SOAK_SECONDS=$$(( $(MINUTES) * 60 )) $(BIN)/python -m pytest -q -s tests/faults/test_soak.py $(ARGS)

reference: build ## write docs/reference.md and the man page from the code
	@$(BIN)/python scripts/reference.py
	@$(BIN)/python scripts/manpage.py

docs: build ## build the documentation site into build/site
	@$(BIN)/python -m mkdocs build --quiet --strict --clean

pin: setup ## pin the newest dependencies anew
	@$(BIN)/python -m pip install --quiet --upgrade -r requirements/test.in
	@$(BIN)/python -m pip freeze --all | grep -viE '^(pip|flanpy)\b|^-e|^\#' >requirements/test.txt

clean: ## remove what was built
	@rm -rf build dist *.egg-info flanpy/*/*.so flanpy/*/*.o flanpy/datapath/flanpy-datapath flanpy/*/_core.c flanpy/*/_native.c bench-results .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find flanpy tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## and the virtual environment
	@rm -rf $(VENV)
