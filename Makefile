# `make` lists what there is to do.
PYTHON := .venv/bin/python
BIN := .venv/bin
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate
PROTOC := PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON) -m grpc_tools.protoc
C_FILES := $(shell git ls-files "*.c" "*.h")
SHELL_FILES := deploy/setup deploy/make-dist deploy/make-image .ci/run
# Where Debian keeps ip and nft, out of an ordinary user's way.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help demo quick test test-cluster fuzz bench fmt lint types hooks dist image proto lock docs-metrics clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## show the main job: pods, redirected traffic, restarts (no root, no cluster)
	@deploy/setup demo
	@$(PYTHON) -m tests.tools.demo

quick: ## format, lint, types, layers, and the tests of the heart: under a minute
	@deploy/setup demo
	@$(MAKE) --no-print-directory lint types
	$(PYTHON) -m pytest -n 2 -q tests/mesh tests/test_cli.py tests/test_config.py

test: ## the whole gate: format, lint, types, layers, tests on the real kernel
	@deploy/setup test
	@$(MAKE) --no-print-directory lint types
	$(PYTHON) -m pytest -n 2

test-cluster: ## only what needs an API server, a container runtime, or both
	@deploy/setup test
	$(PYTHON) -m pytest -n 2 -m "apiserver or runtime"

fuzz: ## the tests that feed hostile input, for some minutes instead of seconds
	@deploy/setup test
	HYPOTHESIS_PROFILE=fuzz $(PYTHON) -m pytest -n 2 -m fuzz --timeout 3600

bench: ## the figures of docs/performance.md, on this machine
	@deploy/setup test
	@$(PYTHON) -m tests.tools.bench

fmt: ## format what a program can format: Python and C
	@deploy/setup demo
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .
	$(BIN)/clang-format -i $(C_FILES)

lint: ## look at Python, C, shell, YAML and spelling, and change nothing
	@deploy/setup demo
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/cppcheck --quiet --error-exitcode=1 --std=c11 --inline-suppr \
		--enable=warning,style,performance,portability $(filter %.c,$(C_FILES))
	$(BIN)/shellcheck $(SHELL_FILES)
	$(BIN)/yamllint --strict deploy .pre-commit-config.yaml
	$(BIN)/codespell $$(git ls-files)

types: ## check the types
	@deploy/setup demo
	$(PYTHON) -m mypy

hooks: ## run `make fmt` and `make lint` before each commit of this clone
	@deploy/setup dist
	.venv/dist/bin/pre-commit install

dist: ## wheel, source archive, SBOM and checksums in dist/, the same bytes each time
	@deploy/setup dist
	deploy/make-dist

image: ## the image in dist/ without a registry, as an OCI archive with its SBOM (needs root)
	@deploy/setup image
	deploy/make-image

proto: ## make the generated code of proto/ anew
	$(PROTOC) -Iproto --python_out=nodeagent/zds --mypy_out=nodeagent/zds proto/zds.proto
	$(PROTOC) -Iproto --python_out=nodeagent/netns --mypy_out=nodeagent/netns proto/cri.proto
	$(PROTOC) -Itests/runtime --python_out=tests/runtime --mypy_out=tests/runtime \
		tests/runtime/kubelet.proto

docs-metrics: ## make docs/metrics.md anew from the definitions
	@deploy/setup demo
	$(PYTHON) -m nodeagent.metrics.reference > docs/metrics.md

lock: ## make the requirements files anew from pyproject.toml (needs uv)
	$(COMPILE) pyproject.toml --output-file deploy/requirements.txt
	$(COMPILE) pyproject.toml --group dev --output-file tests/requirements.txt
	$(COMPILE) --group dist --output-file deploy/requirements-dist.txt

clean: ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
