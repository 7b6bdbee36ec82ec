# Two commands do everything on a fresh machine with Python 3.11+ and make: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# TRL stands in an environment of its own: only the benchmark of `make bench` knows it.
PEER := .venv-peer/bin

.PHONY: install run test check soak bench bench-gpu data format clean
.DEFAULT_GOAL := help

help:
	@echo "make run    install what is needed, run the demo: deployments/experiments/helpdesk.yaml"
	@echo "make test   install what is needed, run the tests (make soak: the long matrices in full)"
	@echo "make check  the one definition of clean: format, lint, types, import contract"
	@echo "make bench  DATA=FOLDER: speed and quality against TRL, on the hh-rlhf and GSM8K files of FOLDER (about an hour)"
	@echo "make clean  remove the environments; the workspace .alignmill stays"

# The stamp is newer than both files exactly when the environment holds what they ask for.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-peer/installed: Makefile constraints.txt
	test -x $(PEER)/python || $(PYTHON) -m venv .venv-peer
	$(PEER)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt trl==1.16.0 peft
	touch $@

install: .venv/installed

run: install
	$(BIN)/alignmill run deployments/experiments/helpdesk.yaml

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: install
	$(BIN)/python -m tests.benchmarks.soak
	$(BIN)/python -m tests.benchmarks.demo

data:
	@test -n "$(DATA)" || { echo "say where hh_harmless_base.jsonl.gz and gsm8k_graded.jsonl.gz are: make bench DATA=FOLDER"; exit 2; }

bench: data install .venv-peer/installed
	$(BIN)/python -m tests.benchmarks.speed --data $(DATA) --peer $(PEER)/python
	$(BIN)/python -m tests.benchmarks.quality --data $(DATA) --peer $(PEER)/python

# With whatever Python has torch for CUDA (PYTHON=...); TRL is measured where .venv-peer is there.
bench-gpu: data
	$(PYTHON) -m tests.benchmarks.speed --data $(DATA) --peer $(PEER)/python --device cuda --dtype bfloat16 --shape 0.5b

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
	rm -rf .venv .venv-peer build *.egg-info
