# The two commands: `make demo` and `make test`. Both begin with `make setup`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LLAMA_CPP ?= $(or $(ONEBASE_CACHE),$(HOME)/.cache/onebase)/llama.cpp

.PHONY: help setup demo test test-slow test-llama-cpp lint types format clean dist

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

test: setup ## the test suite
	$(BIN)/python -m pytest -q

test-slow: setup ## the checks that take minutes
	$(BIN)/python -m pytest -q -m slow

test-llama-cpp: setup ## exported GGUF files against llama.cpp, token for token
	@test -x $(LLAMA_CPP)/bin/python || $(PYTHON) -m venv $(LLAMA_CPP)
	$(LLAMA_CPP)/bin/pip install --quiet --disable-pip-version-check xllamacpp==2026.10.11549
	ONEBASE_LLAMA_CPP=$(LLAMA_CPP)/bin/python $(BIN)/python -m pytest -q -m slow tests/export/test_llama_cpp.py

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
