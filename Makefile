# make install | train | compare | benchmark | test | lint | format | type | clean
PYTHON ?= python3
ENV ?= CartPole-v1
STEPS ?= 100000
BIN := .venv/bin

.PHONY: install train compare benchmark test lint format type clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv --upgrade-deps .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[extra,mujoco,zoo,dev]"
	touch $@

train: install
	$(BIN)/python scripts/train.py --env $(ENV) --steps $(STEPS)

compare: install
	$(BIN)/python scripts/compare.py $(ARGS)

benchmark: install
	$(BIN)/python scripts/benchmark.py $(ARGS)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: install
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .*_cache
