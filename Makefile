# Each goal sets up what it needs and can be run again. Needs Python 3.11 and make, nothing else.
#
#   PYTHON=/path/to/python3.11   the interpreter of the environment, if it is not found as python3.11
#   WORKERS=N                    how many tests run at a time, by default one more than cores, since some only wait
#   TORCH_INDEX=URL              where to look for torch as well, for example https://download.pytorch.org/whl/cpu,
#                                which on Linux spares a download of several GB for GPUs

# The loop starts a process per run, each of which would compile anew what nobody may keep compiled.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS := $(shell expr `getconf _NPROCESSORS_ONLN` + 1)
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help demo ui test bench lint audit down install

help:  ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

demo: $(INSTALLED)  ## Play episodes until the sensor starts a training, then follow it to the gate
	$(BIN)/rl-assets demo $(ARGS)

ui: $(INSTALLED)  ## Dagster's web interface and daemon on the demo's data, until Ctrl-C (PORT=3000)
	$(BIN)/rl-assets ui $(if $(PORT),--port $(PORT)) $(ARGS)

test: $(INSTALLED)  ## All tests: unit, database, daemon, browser (some of them: .venv/bin/pytest PATH)
	$(BIN)/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

bench: $(INSTALLED)  ## Speed of the parts beside their peers (ARGS="market judging" for some; the long data_plane, learning and loop if named)
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(INSTALLED)  ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

audit: $(INSTALLED)  ## Known vulnerabilities of what is installed, as far as the advisories can be reached
	@test -x $(VENV)/audit/bin/python || $(PYTHON) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install -qq "pip-audit==2.10.1" || echo "pip-audit cannot be installed here" >&2
	$(VENV)/audit/bin/python .ci/audit.py

down: $(INSTALLED)  ## Stop the embedded database, if a killed command left it running
	$(BIN)/rl-assets db down

install: $(INSTALLED)  ## The environment alone

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed and $(PYTHON) is not it; say where it is: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@
