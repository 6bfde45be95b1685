# Owns: what is installed, built and run, and in which order. How a part is compiled stands in build/.
# Everything works as root on a fresh Debian or Ubuntu with git and make only, is idempotent, and is quick the second time.

WATCH ?= myapp
FUZZ_SECONDS ?= 600
PYTHON := .venv/bin/python
STAMPS := .cache/stamps
MODULE := monitor/engine/_native.abi3.so
OBJECT := monitor/capture/kinwatch.bpf.o
NATIVE := $(wildcard monitor/engine/native/*.[ch])
EBPF := $(wildcard ebpf/*.[ch])

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build native ebpf dev run demo test test-long sanitise fuzz bench lint format wheel clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf 'make %-10s %s\n' "$$name" "$$text"; done

build: $(STAMPS)/installed ## install what is missing, compile, prepare .venv/
	@echo "built: .venv/bin/kinwatch"

native: $(MODULE) ## compile the engine only

ebpf: $(OBJECT) ## compile the kernel side only

run: build ## watch every process called WATCH (default myapp), expecting that it has no child
	exec .venv/bin/kinwatch run --watch "$(WATCH)" --expect child_processes=0

demo: build ## the walkthrough: an application starts a child, the alarm comes
	exec $(PYTHON) -m monitor.demo

test: dev sanitise ## the suite (as root): sanitizers, 20 s of fuzzing, then every test
	$(MAKE) fuzz FUZZ_SECONDS=20
	$(PYTHON) -m pytest tests

test-long: dev sanitise ## the suite with full numbers
	$(MAKE) fuzz FUZZ_SECONDS=120
	KINWATCH_LONG=1 $(PYTHON) -m pytest tests

sanitise: dev ## the engine's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(PYTHON) build/sanitise.py engine

fuzz: dev ## feed the engine hostile bytes for FUZZ_SECONDS (default 600)
	$(PYTHON) build/sanitise.py fuzz --seconds $(FUZZ_SECONDS)

bench: dev ## measure, and print the tables
	$(PYTHON) tests/bench/bench.py

lint: dev ## every static check: ruff, mypy, clang-format, gcc and clang, cppcheck
	$(PYTHON) build/lint.py

format: dev ## put every file into its format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix-only --quiet .
	$(PYTHON) build/lint.py --format

wheel: dev ## dist/*.whl, which needs no compiler and no package where it is installed
	$(PYTHON) build/wheel.py

clean: ## remove everything that was made, .venv/ included
	rm -rf .venv .cache dist monitor/engine/_native*.so monitor/capture/*.bpf.o
	find monitor build tests -name __pycache__ -type d -prune -exec rm -rf {} +

# What installing leaves behind. Each stamp is newer than what it depends on, so nothing is asked twice.

$(STAMPS)/packages: build/packages.sh
	build/packages.sh build
	@mkdir -p $(@D) && touch $@

$(STAMPS)/packages-dev: build/packages.sh
	build/packages.sh dev
	@mkdir -p $(@D) && touch $@

# /usr/bin/python3, because Debian's BCC binding belongs to it.
.venv/bin/python: | $(STAMPS)/packages
	/usr/bin/python3 -m venv .venv

$(STAMPS)/requirements: pyproject.toml build/requirements.py | .venv/bin/python
	$(PYTHON) build/requirements.py > .cache/requirements.txt
	$(PYTHON) -m pip install --quiet --requirement .cache/requirements.txt
	@touch $@

$(STAMPS)/requirements-dev: pyproject.toml build/requirements.py | $(STAMPS)/requirements
	$(PYTHON) build/requirements.py dev > .cache/requirements-dev.txt
	$(PYTHON) -m pip install --quiet --requirement .cache/requirements-dev.txt
	@touch $@

$(MODULE): $(NATIVE) $(EBPF) build/native.py build/recipe.py | $(STAMPS)/requirements
	$(PYTHON) build/native.py

$(OBJECT): $(EBPF) build/ebpf.py build/recipe.py | $(STAMPS)/requirements
	$(PYTHON) build/ebpf.py

# Editable: .venv/bin/kinwatch runs what stands in monitor/. The build hook finds both parts made and compiles nothing.
$(STAMPS)/installed: pyproject.toml build/hook.py $(MODULE) $(OBJECT)
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

dev: build $(STAMPS)/packages-dev $(STAMPS)/requirements-dev
