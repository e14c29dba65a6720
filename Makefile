# Thin: each target says what it does and calls one script or tool. `make help` lists them.
.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-print-directory
# Another environment that happens to be active must not matter.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

BIN := .venv/bin
READY := .venv/.ready
SGLANG := .venv-sglang/.ready
HELM := build/bin/helm
# Tests of single parts: they come first.
RENDERED := $(shell grep -L 'pytest.mark.\(integration\|e2e\)' tests/helm/test_*.py)
PARTS := tests/unit tests/simulation tests/contract tests/sglang $(RENDERED)
# SGLang's own engine needs a namespace for itself, the chart a cluster.
ENGINE := tests/engine
CLUSTER := tests/kubernetes
WHOLE := $(filter-out $(PARTS) $(ENGINE) $(CLUSTER) tests/helm,$(patsubst %/,%,$(wildcard tests/*/))) $(filter-out $(PARTS),$(wildcard tests/helm/test_*.py))
SLOW := integration or e2e or chaos or helm or bench

.PHONY: help
help: ## this list
	@echo "etcd_pd: make run is the demonstration, make check the inner loop, make test the verdict"
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# Installs again only when what is to be installed changed.
$(READY): pyproject.toml constraints.txt scripts/python-env
	@scripts/python-env
	@touch $@

# SGLang's own code and this project's client, in an environment of its own: their pins exclude each other.
$(SGLANG): $(READY) tests/sglang/requirements.txt scripts/sglang-env scripts/share_distribution.py
	@scripts/sglang-env
	@touch $@

# Helm 4, Helm 3 and kubectl, for the chart's tests and renders.
$(HELM): scripts/helm-binary
	@scripts/helm-binary >/dev/null
	@touch $@

.PHONY: setup
setup: $(READY) ## fill .venv with the project and what it needs

.PHONY: run
run: $(READY) ## start etcd, 4 prefill ranks, 2 decodes and the router; send 32 prompts; check and show each
	@echo "run: the whole stack, 32 prompts, then a table"
	@$(BIN)/etcd-pd up --demo

.PHONY: up
up: $(READY) ## the same stack, left running until Ctrl-C; its router at port 8000, or make up PORT=N
	@echo "up: the whole stack, until Ctrl-C"
	@$(BIN)/etcd-pd up --port $(or $(PORT),8000)

.PHONY: check
check: $(READY) ## unit and contract tests: the inner loop, about a minute
	@echo "check: unit and contract tests"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit tests/contract -m "not ($(SLOW))"

.PHONY: check-pythons
check-pythons: $(READY) ## the same on every Python from 3.11 on that is installed, and which these are
	@scripts/check-pythons tests/unit tests/contract -m "not ($(SLOW))"

.PHONY: docker
docker: ## a Docker engine with an etcd image, for the tests
	@scripts/docker-engine
	@echo "docker: tests run etcd from $$(scripts/etcd-image)"

.PHONY: images
images: $(READY) docker ## the images of the Helm chart: agent and engine
	@scripts/images

.PHONY: push
push: docker $(HELM) ## the images and the chart into a registry: make push REGISTRY=registry.example.com/team
	@test -n "$(REGISTRY)" || { echo "push: where to? make push REGISTRY=..." >&2; exit 2; }
	@scripts/images "$(REGISTRY)"
	@scripts/push-chart "$(REGISTRY)"

.PHONY: manifests
manifests: $(READY) $(HELM) ## what follows from the Helm chart: k8s/, its README table, values.schema.json
	@scripts/manifests

.PHONY: chromium
chromium: ## a Chromium for the tests of the dashboard
	@echo "chromium: $$(scripts/chromium)"

.PHONY: promtool
promtool: ## Prometheus' promtool for the tests of the alerts
	@echo "promtool: $$(scripts/debian-program promtool prometheus)"

.PHONY: test
test: $(READY) $(SGLANG) $(HELM) docker images chromium promtool ## every test but the long ones (most of chaos, bench)
	@echo "test: unit, contract, the simulation, SGLang's classes, the rendered chart, in two processes: seven minutes"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(PARTS) -m "not (chaos or bench) or quick"
	@echo "test: integration, e2e, the chart's commands and images, and quick chaos, in two processes: ten minutes"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(WHOLE) -m "not (chaos or bench) or quick"

.PHONY: test-unit
test-unit: $(READY) ## tests of the pure parts
	@echo "test-unit: the pure parts"
	@$(BIN)/python -m pytest -q tests/unit

.PHONY: test-integration
test-integration: $(READY) docker chromium ## contract and integration tests against real etcd
	@echo "test-integration: against real etcd"
	@$(BIN)/python -m pytest -q tests/contract tests/integration -m "not (chaos or bench)"

.PHONY: test-etcd
test-etcd: $(READY) docker ## what depends on etcd's version, on each that people install; quick chaos; upgrades under load
	@echo "test-etcd: today's etcds, from the archives in \$$ETCD_PD_TEST_ETCD or a registry; eight minutes"
	@scripts/test-etcd

.PHONY: test-e2e
test-e2e: $(READY) docker ## the whole stack, watched by an independent etcd client
	@echo "test-e2e: the whole stack"
	@$(BIN)/python -m pytest -q tests/e2e -m "not (chaos or bench)"

.PHONY: test-helm
test-helm: $(READY) $(HELM) docker images promtool ## the Helm chart: renders, schemas, alerts, its commands and images
	@echo "test-helm: the chart, and its pods running"
	@$(BIN)/python -m pytest -q tests/helm

.PHONY: test-cluster
test-cluster: $(READY) $(HELM) docker images ## the chart on a real Kubernetes (docs/deployment.md says where it comes from), under a counted load
	@echo "test-cluster: a cluster and images on its nodes (three minutes), then five minutes of restarts and losses"
	@$(BIN)/python -m pytest -q -rP $(CLUSTER) -m quick

.PHONY: test-cluster-all
test-cluster-all: $(READY) $(HELM) docker images ## the same, with lost nodes, upgrades, policies and all else; an hour
	@echo "test-cluster-all: an hour, and the quick ones again on a cluster with IPv6 alone"
	@$(BIN)/python -m pytest -q -rP $(CLUSTER)
	@ETCD_PD_TEST_FAMILY=ipv6 $(BIN)/python -m pytest -q -rP $(CLUSTER) -m quick

.PHONY: test-sglang
test-sglang: $(READY) $(SGLANG) ## SGLang's own engine on this CPU, with and without the plug-in, while parts of etcd_pd are missing
	@echo "test-sglang: five servers of SGLang's start (two minutes), then three minutes of requests; logs in build/sglang/logs"
	@scripts/loopback-only $(BIN)/python -m pytest -q $(ENGINE) -m quick

.PHONY: test-sglang-all
test-sglang-all: $(READY) $(SGLANG) ## the same, with everything that takes longer
	@scripts/sglang-wheels
	@echo "test-sglang-all: twenty minutes; logs in build/sglang/logs"
	@scripts/loopback-only $(BIN)/python -m pytest -q -rP $(ENGINE)

.PHONY: test-chaos
test-chaos: $(READY) docker ## every fault, under load, judged; about a quarter of an hour
	@echo "test-chaos: CHAOS_SEED=N repeats a run, CHAOS_HISTORIES=DIR keeps the histories"
	@$(BIN)/python -m pytest -q -rP tests/chaos

.PHONY: mutants
mutants: $(READY) ## faults planted in the code, and in how many simulated worlds the rules see each; six minutes
	@echo "mutants: what the simulation's rules see of them"
	@$(BIN)/python -m tests.simulation.mutants

.PHONY: simulate
simulate: $(READY) ## the whole system in virtual time under faults, for a minute; SEEDS=N make simulate for a night
	@$(BIN)/python -m tests.simulation

.PHONY: fuzz
fuzz: $(READY) ## hostile bytes at the agent's socket: FUZZ_SECONDS=28800 make fuzz for a night
	@$(BIN)/python -m pip --quiet --disable-pip-version-check install --constraint constraints.txt --editable '.[fuzz]'
	@echo "fuzz: $${FUZZ_SECONDS:-600} seconds; a crash leaves its input in build/fuzz"
	@mkdir -p build/fuzz && $(BIN)/python -m tests.fuzz -max_total_time=$${FUZZ_SECONDS:-600} -artifact_prefix=build/fuzz/ build/fuzz/corpus

.PHONY: screenshots
screenshots: $(READY) chromium ## docs/dashboard-*.png: the dashboard over the local stack under load, and as parts of it fail; five minutes
	@$(BIN)/python -m tests.e2e.screenshots

.PHONY: transcript
transcript: $(READY) chromium ## the part of docs/operations.md that shows a killed rank, as status, doctor, logs, page and alert show it
	@$(BIN)/python -m tests.e2e.transcript

.PHONY: soak
soak: $(READY) docker ## an hour of load: does anything grow?
	@echo "soak: an hour of load; a line of figures every ten seconds"
	@$(BIN)/python -m tests.chaos.soak --plot docs/soak.svg

.PHONY: bench
bench: $(READY) $(SGLANG) ## beside SGLang's own server and raw etcd, TTFT, growth: docs/performance.md, ttft.md, scaling.md; 45 minutes
	@echo "bench: measuring; leave the machine alone"
	@$(BIN)/python -m benchmarks.growth.run
	@$(MAKE) bench-ttft
	@$(BIN)/python -m benchmarks

.PHONY: bench-ttft
bench-ttft: $(READY) $(SGLANG) ## time to first token alone: the published table emulated, over 40 seeds; docs/ttft.md; 12 minutes
	@echo "bench-ttft: simulating, then the full stack; leave the machine alone"
	@$(BIN)/python -m benchmarks.ttft.run
	@$(BIN)/python -m benchmarks.ttft.page

.PHONY: bench-quick
bench-quick: $(READY) $(SGLANG) ## the same in three minutes, printed and not kept
	@echo "bench-quick: measuring; leave the machine alone"
	@$(BIN)/python -m benchmarks --quick

.PHONY: bench-etcd-size
bench-etcd-size: $(READY) ## what a room costs etcd's database: the figure behind its quota
	@$(BIN)/python -m benchmarks.etcd_size

.PHONY: docs
docs: $(READY) ## the pages of docs/ and the reference from the docstrings, into build/docs; a broken link is an error
	@echo "docs: build/docs/index.html"
	@$(BIN)/mkdocs build --quiet

.PHONY: package
package: $(READY) ## wheel and sdist into dist/, the same bytes from the same sources
	@echo "package: wheel and sdist"
	@$(BIN)/python scripts/package.py

.PHONY: fix
fix: $(READY) ## format and repair what a tool can
	@echo "fix: ruff"
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format --quiet .
	@echo "fix: settings table of README.md"
	@$(BIN)/python scripts/settings_table.py

.PHONY: verify
verify: $(READY) $(HELM) ## lint, types, and generated files that drifted from their source
	@echo "verify: ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@echo "verify: mypy --strict"
	@$(BIN)/mypy
	@echo "verify: etcd's messages, the settings table and the manifests are what their sources say"
	@scripts/generate-etcdrpc.sh --check
	@$(BIN)/python scripts/settings_table.py --check
	@scripts/manifests --check

.PHONY: clean
clean: ## remove everything that was made here
	@echo "clean: .venv, caches, builds"
	@rm -rf .venv .venv-sglang build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
