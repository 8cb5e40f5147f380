# `make demo` runs the whole loop on a real cluster; `make test` runs everything that CI holds.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Hundreds of Python processes are started, many of which load torch and vLLM. Where bytecode may not be written, as an
# environment made for one container says, each of them compiles all that it loads.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup gguf demo down test e2e test-long lint format generate docs sbom image-sizes audit

help:  ## list the targets
	@grep -hE '^[a-z0-9%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## .venv with the packages and all tools
	@scripts/setup.sh

gguf:  ## llama.cpp for exports as GGUF and their tests, compiled once, for minutes
	@scripts/gguf.sh

demo:  ## the whole loop on a real cluster; what is missing is said before anything is installed
	@scripts/plain-python.sh -m deepcoder_demo.preflight
	@scripts/setup.sh
	@$(PY) -m deepcoder_demo

down:  ## remove every trace of the cluster
	@scripts/plain-python.sh -m devcluster down

# Half of the time tests wait, so five share two cores. Each has a fifth of the files in their order, so that few
# start the same servers, and takes from another's end when it is done; `WORKERS=1` is for looking into a failure.
# Their seed of hashes is one: see conftest.py.
WORKERS ?= 5

test: setup lint  ## all that CI holds but the end-to-end tests; builds the real API, etcd and S3 servers they run
	@$(PY) -m devcluster build
	@PYTHONHASHSEED=$$((RANDOM + 1)) $(PY) -m pytest -n $(WORKERS) --dist worksteal -m "not e2e and not cluster and not long and not gpu"

e2e:  ## end-to-end tests on the real cluster, minutes each
	@scripts/plain-python.sh -m deepcoder_demo.preflight
	@scripts/setup.sh
	@$(PY) -m pytest -m "(e2e or cluster) and not long"

test-long: setup  ## chaos, fuzzing, scale at full length
	@$(PY) -m devcluster build --with kueue --with keda --with registry
	@$(PY) -m pytest -m "long"

# Side by side: each is a process that takes seconds.
LINTS := lint-style lint-types lint-layers lint-generated lint-dependencies
.PHONY: $(LINTS)

lint: setup  ## ruff, mypy, import-linter, generated files
	@$(MAKE) --no-print-directory --jobs=$(shell nproc) --output-sync $(LINTS)

lint-style:
	@.venv/bin/ruff format --check -q . && .venv/bin/ruff check -q .

# In a new clone, too, only what has changed is checked anew: mypy goes by what files hold, wherever they lie. One at a
# time, since it does not look whether another writes there.
TYPES := $(or $(DEEPCODER_CACHE),$(HOME)/.cache/deepcoder)/mypy

lint-types:
	@mkdir -p "$(TYPES)"
	@flock --timeout 900 "$(TYPES).lock" .venv/bin/mypy --cache-dir "$(TYPES)"

lint-layers:
	@.venv/bin/lint-imports pyproject.toml > /dev/null || .venv/bin/lint-imports pyproject.toml

lint-generated:
	@$(PY) scripts/generated.py --check

lint-dependencies:
	@$(PY) scripts/dependencies.py --check

format: setup  ## rewrite what can be rewritten
	@.venv/bin/ruff format -q . && .venv/bin/ruff check -q --fix .

generate: setup  ## CRDs from the API types, the state machine's page from the planner, docs/cli.md from its help, dashboards, all references
	@$(PY) operator/tests/state_walk.py --write
	@$(PY) scripts/generated.py

audit: setup  ## known vulnerabilities of what is pinned and built; ADVISORIES= SAFETY_DB= GO_ADVISORIES= checkouts of lists of them
	@$(PY) scripts/audit.py $(if $(ADVISORIES),--advisories "$(ADVISORIES)") $(if $(SAFETY_DB),--safety-db "$(SAFETY_DB)") \
		$(if $(GO_ADVISORIES),--go-advisories "$(GO_ADVISORIES)")

docs: setup  ## the docs as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
	@echo "build/site: to look at it, python3 -m http.server --directory build/site (searching takes a server)"

sbom: setup  ## what is in the images, as CycloneDX, in build/sbom; builds the images
	@$(PY) -m devcluster build --images
	@$(PY) scripts/image_report.py --sbom build/sbom

image-sizes: setup  ## measure the images, into a dated page of docs/results
	@$(PY) -m devcluster build --images
	@$(PY) scripts/image_report.py --sizes docs/results/images-$(shell date +%F).md

BENCHMARKS := ablations checkpoint curate dashboard demo gpu judge judge_load operator pipeline
# `operator` is a module of the standard library, which no file beside a benchmark may take the place of.
FILE_operator := operator_scale
# The page that a benchmark writes beside its table.
PAGE ?= docs/results/$*-$(shell date +%F).md

bench-%: setup  ## a benchmark: ablations checkpoint curate dashboard demo gpu judge judge_load operator pipeline; PAGE=FILE for another page than the dated one
	@[[ " $(BENCHMARKS) " == *" $* "* ]] || { echo "make: no benchmark '$*'; there are: $(BENCHMARKS)" >&2; exit 64; }
	@$(PY) benchmarks/$(or $(FILE_$*),$*).py --page $(PAGE)
