# Owns: what is installed, built and run, and in which order. How a part is compiled stands in build/.
# Everything works as root on a fresh Debian or Ubuntu with git and make only, is idempotent, and is quick the second time.

WATCH ?= myapp
FUZZ_SECONDS ?= 600
PYTHON := .venv/bin/python
PROGRAM := .venv/bin/kinwatch
MODULE := monitor/engine/_native.abi3.so
OBJECTS := monitor/capture/kinwatch.bpf.o monitor/capture/net.bpf.o monitor/capture/kinwatch.bcc.c
NATIVE := $(wildcard monitor/engine/native/*.[ch])
EBPF := $(wildcard ebpf/*.[ch])
# Two workers: more would meet each other where the kernel has something once.
BESIDE := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build native ebpf dev run demo demo-defender test test-long vm vm-quick sanitise fuzz bench lint format wheel wheels deb package-test clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf 'make %-13s %s\n' "$$name" "$$text"; done

build: packages $(MODULE) $(OBJECTS) $(PROGRAM) ## install what is missing, compile, prepare .venv/

native: $(MODULE) ## compile the engine only

ebpf: $(OBJECTS) ## compile the kernel side only

run: build ## watch every process called WATCH (default myapp), expecting that it has no child
	exec $(PROGRAM) run --watch "$(WATCH)" --expect child_processes=0

demo: build ## the walkthrough: an application starts a child, the alarm comes
	exec $(PYTHON) -m monitor.demo

demo-defender: build ## the same with a broker and a local Device Defender: alarm and report arrive
	@build/packages.sh demo
	exec $(PYTHON) -m monitor.demo_defender

test: dev sanitise ## the suite (as root): sanitizers, 20 s of fuzzing, then every test
	$(MAKE) fuzz FUZZ_SECONDS=20
	$(PYTHON) -m pytest $(BESIDE) tests

test-long: dev sanitise ## the suite with full numbers
	$(MAKE) fuzz FUZZ_SECONDS=120
	KINWATCH_LONG=1 KINWATCH_PATIENCE=10 $(PYTHON) -m pytest $(BESIDE) tests

vm: dev .venv/requirements-package.txt ## the suite on other kernels, in virtual machines; writes docs/kernels.md
	@build/packages.sh arm
	PYTHONPATH=build $(PYTHON) -m tests.vm.run

vm-quick: dev ## a dozen tests on two other kernels, in virtual machines
	@build/packages.sh vm
	PYTHONPATH=build $(PYTHON) -m tests.vm.run --quick

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

wheel: dev ## dist/*.whl for machines like this one: no compiler and no package is needed where it is installed
	$(PYTHON) build/wheel.py

wheels: package-tools ## dist/*.whl for every machine with glibc 2.28, and the source distribution
	$(PYTHON) build/wheel.py --machine x86_64 --machine aarch64 --sdist

deb: package-tools ## dist/*.deb for this machine
	$(PYTHON) build/deb.py

package-test: package-tools ## make every package, and install each in a clean root
	$(PYTHON) -m pytest -m packages tests/packaging

clean: ## remove everything that was made, .venv/ included
	rm -rf .venv .cache dist monitor/engine/_native*.so monitor/capture/*.bpf.o monitor/capture/*.bcc.c
	find monitor build tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The packages are looked at every time (30 ms): a checkout may move to another machine. Everything else is made again only
# when something it depends on is newer; what pip did is noted in .venv/, so that it goes when that goes.

.PHONY: packages packages-dev packages-package package-tools
packages:
	@build/packages.sh build

packages-dev:
	@build/packages.sh dev

# /usr/bin/python3, because Debian's BCC binding belongs to it.
$(PYTHON): | packages
	/usr/bin/python3 -m venv .venv

.venv/requirements.txt: pyproject.toml build/requirements.py | $(PYTHON)
	$(PYTHON) build/requirements.py > $@
	$(PYTHON) -m pip install --quiet --requirement $@

.venv/requirements-dev.txt: pyproject.toml build/requirements.py | .venv/requirements.txt
	$(PYTHON) build/requirements.py dev > $@
	$(PYTHON) -m pip install --quiet --requirement $@

$(MODULE): $(NATIVE) $(EBPF) build/native.py build/recipe.py | .venv/requirements.txt
	$(PYTHON) build/native.py

$(OBJECTS) &: $(EBPF) build/ebpf.py build/recipe.py | .venv/requirements.txt
	$(PYTHON) build/ebpf.py

# Editable: the program runs what stands in monitor/. The build hook finds all parts made and compiles nothing.
$(PROGRAM): pyproject.toml build/hook.py | $(MODULE) $(OBJECTS)
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

.venv/requirements-package.txt: pyproject.toml build/requirements.py | .venv/requirements-dev.txt
	$(PYTHON) build/requirements.py package > $@
	$(PYTHON) -m pip install --quiet --requirement $@

packages-package:
	@build/packages.sh package

dev: build packages-dev .venv/requirements-dev.txt

package-tools: dev packages-package .venv/requirements-package.txt
