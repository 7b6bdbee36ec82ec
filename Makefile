# Two commands do everything on a fresh machine with Python 3.11+ and make: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install run test check soak format clean
.DEFAULT_GOAL := help

help:
	@echo "make run    install what is needed, run the demo: deployments/experiments/helpdesk.yaml"
	@echo "make test   install what is needed, run the tests (make soak: the long matrices in full)"
	@echo "make check  the one definition of clean: format, lint, types, import contract"
	@echo "make clean  remove the environment; the workspace .alignmill stays"

# The stamp is newer than both files exactly when the environment holds what they ask for.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

install: .venv/installed

run: install
	$(BIN)/alignmill run deployments/experiments/helpdesk.yaml

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: install
	$(BIN)/python -m tests.benchmarks.soak
	$(BIN)/python -m tests.benchmarks.demo

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py
	$(BIN)/python deployments/helpdesk/make_data.py --check

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info
