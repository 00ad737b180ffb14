# make install   a .venv with everything, test tools included
# make demo      train a network with learned and hand-designed optimizers, side by side
# make test      lint, type-check, test
# make docs      the documentation site, into site/
# make algoperf  test the JAX submissions to AlgoPerf under the versions that it pins
# make bench     what a step costs; rewrites the tables of docs/performance.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ALGOPERF := .venv-algoperf
ARGS ?=

.PHONY: install demo docs bench test lint types unit algoperf wheel clean

# PyTorch comes first and pinned: the tests need its build for CPUs alone, and a bare requirement may bring
# gigabytes of CUDA libraries.
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'celo2 needs Python 3.11 or newer, found ' + sys.version)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: install
	$(BIN)/celo2 compare $(ARGS)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install
	$(BIN)/python benchmarks/performance.py $(ARGS)

test: lint types unit

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/pyright

unit: install
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

algoperf: install $(ALGOPERF)/.installed
	$(BIN)/pytest -n 0 tests/e2e/test_algoperf_pinned.py $(ARGS)

$(ALGOPERF)/.installed: benchmarks/algoperf/requirements-pinned.txt
	$(PYTHON) -m venv $(ALGOPERF)
	$(ALGOPERF)/bin/python -m pip install --quiet --requirement $<
	touch $@

wheel: install
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) $(ALGOPERF) build dist site .pytest_cache .ruff_cache
