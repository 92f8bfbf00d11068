# make serve    set everything up and serve $(CONFIG)
# make test     set everything up and run what CI runs
# make fuzz     100,000 bad requests against a gateway, its workers' ports and a controller's; ARGS=--help tells more
# make compile  native modules of what decides, which is then about twice as fast; make clean removes them
# make chaos    the long form of tests/chaos: REQUESTS=10000 under faults all along, SEED=1, then what came of it as a table
# make soak     a steady load for SECONDS=600; memory, descriptors, threads, tasks and blocks have to be flat: PLOT=soak.html
# CONFIG=FILE   the configuration to serve        TORCH_INDEX=URL  where torch alone comes from (an index with CPU builds)
# ARGS=...      for pytest: make test ARGS=tests/config

CONFIG ?= configs/local.yaml
TORCH_INDEX ?=
ARGS ?=
REQUESTS ?= 10000
SEED ?= 1
SECONDS ?= 600
PLOT ?= soak.html
PYTHON ?= $(shell for each in python3 python3.12 python3.11; do \
	"$$each" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo "$$each" && exit; \
	done; echo python3)
SETUP := $(PYTHON) scripts/setup.py --torch-index "$(TORCH_INDEX)"
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev serve test chaos soak fuzz lint format proto compile clean

help:
	@sed -n 's/^# //p' Makefile

setup:
	@$(SETUP)

setup-dev:
	@$(SETUP) --dev

serve: setup
	@exec $(BIN)/segue up "$(CONFIG)"

test: lint
	@$(BIN)/python -m pytest $(ARGS)

chaos: setup-dev
	@$(BIN)/python -m tests.chaos --requests $(REQUESTS) --seed $(SEED) $(ARGS)

soak: setup-dev
	@$(BIN)/python -m tests.chaos.soak --seconds $(SECONDS) --seed $(SEED) --plot $(PLOT) $(ARGS)

fuzz: setup-dev
	@$(BIN)/python -m tests.fuzz $(ARGS)

lint: setup-dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "some files are not formatted as CI wants them: make format"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup-dev
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format .

proto: setup-dev
	@$(BIN)/python hatch_build.py

compile: setup-dev
	@$(BIN)/python scripts/compile.py

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find orchestrator -name '*_pb2*.py*' -delete
	find orchestrator -name '*.so' -delete
	rm -f segue__mypyc*.so orchestrator/compiled.json
	find orchestrator workers tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
