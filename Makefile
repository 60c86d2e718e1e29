# llm-mesh. `make help` lists the targets. Needs python3 (3.11 or newer) and make, nothing else.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export UV_PYTHON_DOWNLOADS := never
unexport PYTHONDONTWRITEBYTECODE  # cached bytecode halves every start

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}'

# The environment is made once per lock file: plain venv, then uv from its own hash, then the locked packages.
$(VENV)/ready: requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@echo "setting up $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: run
run: $(VENV)/ready ## start the whole platform here; http on 8080, https on 8443 (HTTP_PORT= HTTPS_PORT= REDIS_URL= BACKEND=)
	@exec $(BIN)/llm-mesh run

.PHONY: test
test: $(VENV)/ready ## every test that runs in minutes: unit, store, Envoy, whole stack
	@$(BIN)/python -m pytest tests

.PHONY: check
check: $(VENV)/ready ## ruff and mypy, strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: fuzz
fuzz: $(VENV)/ready ## the fuzz tests for longer (SECONDS_EACH=60)
	@FUZZ_SECONDS=$(or $(SECONDS_EACH),60) $(BIN)/python -m pytest tests/unit/test_fuzz.py tests/stack/test_fuzz_wire.py --timeout 3600

.PHONY: bench
bench: $(VENV)/ready ## direct, Envoy only and the platform, side by side (ARGS="--quick --only miss")
	@$(BIN)/python tests/bench/run.py $(ARGS)

.PHONY: soak
soak: $(VENV)/ready ## five minutes of mixed load: is memory flat?
	@$(BIN)/python tests/bench/run.py --soak 300

.PHONY: format
format: $(VENV)/ready ## format and fix what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: clean
clean: ## remove the environment and everything generated
	rm -rf $(VENV) .run .cache bench-results .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: lock
lock: ## pin every dependency again, with hashes
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --extra local --extra dev --python-version 3.11 -o requirements.lock pyproject.toml
	@echo uv | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 -o requirements-uv.lock -
