# `make` lists what there is to do.
PYTHON := .venv/bin/python
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate pyproject.toml
PROTOC := PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON) -m grpc_tools.protoc
# Where Debian keeps ip and nft, out of an ordinary user's way.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help demo test test-cluster fuzz bench proto lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## show the main job: pods, redirected traffic, restarts (no root, no cluster)
	@deploy/setup demo
	@$(PYTHON) -m tests.demo

test: ## the whole gate: format, lint, types, layers, tests on the real kernel
	@deploy/setup test
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	$(PYTHON) -m pytest -n 2

test-cluster: ## only what needs an API server, a container runtime, or both
	@deploy/setup test
	$(PYTHON) -m pytest -n 2 tests/cluster tests/runtime tests/node

fuzz: ## the tests that feed hostile input, for some minutes instead of seconds
	@deploy/setup test
	HYPOTHESIS_PROFILE=fuzz $(PYTHON) -m pytest -n 2 -m fuzz --timeout 3600

bench: ## the figures of docs/performance.md, on this machine
	@deploy/setup test
	@$(PYTHON) -m tests.bench

proto: ## make the generated code of proto/ anew
	$(PROTOC) -Iproto --python_out=nodeagent/zds --mypy_out=nodeagent/zds proto/zds.proto
	$(PROTOC) -Iproto --python_out=nodeagent/netns --mypy_out=nodeagent/netns proto/cri.proto
	$(PROTOC) -Itests/runtime --python_out=tests/runtime --mypy_out=tests/runtime \
		tests/runtime/kubelet.proto

lock: ## make both requirements files anew from pyproject.toml (needs uv)
	$(COMPILE) --output-file deploy/requirements.txt
	$(COMPILE) --group dev --output-file tests/requirements.txt

clean: ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
