# Everything starts here: `make demo` and `make test` need Python 3.11, git and nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := platform benchmarks pipelines clusters tests

export NO_ALBUMENTATIONS_UPDATE := 1
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
export RAY_DATA_DISABLE_PROGRESS_BARS := 1

.PHONY: install demo test check test-slow format

install: .venv/installed

# torch first and pinned: left to the other packages, pip may take another build of it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	touch $@

demo: install
	test -f data/demo/dataset.json || $(BIN)/python pipelines/prepare.py --format demo --out data/demo
	$(BIN)/python pipelines/train.py --config pipelines/configs/demo.yaml

test: install check
	sh tests/debian-packages.sh
	RAY_AUTH_MODE=disabled RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.25 $(BIN)/pytest --numprocesses 2 --dist loadfile

test-slow: install
	sh tests/debian-packages.sh
	RAY_AUTH_MODE=disabled RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.25 $(BIN)/pytest -m slow

check: install
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/mypy --no-incremental --follow-imports=silent pipelines
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
