# Every target makes what it needs. `make PYTHON=python3.12 demo` picks another interpreter.
PYTHON ?= python3
# Wheels of PyTorch for processors only; the ones on PyPI bring several GB for graphics cards.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --retries 1

.PHONY: install demo smoke test image peers bench lint type docs clean

install: .venv/core
demo: .venv/demo
	$(BIN)/python examples/demo/demo.py
smoke: .venv/demo
	$(BIN)/python examples/demo/demo.py --smoke
test: .venv/test
	$(BIN)/python -m pytest
image: .venv/test
	SALVER_TEST_IMAGE=1 $(BIN)/python -m pytest tests/image
peers: .venv/test
	$(BIN)/python -m pytest tests/peers
bench: .venv/bench
	$(BIN)/python -m benchmarks.curve
	$(BIN)/python -m benchmarks
lint: .venv/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
type: .venv/lint .venv/test
	$(BIN)/mypy
docs: .venv/core
	$(BIN)/python -m salver.cli.reference docs
	$(BIN)/python docs/modules.py
clean:
	rm -rf .venv .demo .bench .cache

.venv/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Salver needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	touch $@
.venv/core: .venv/pip pyproject.toml
	$(PIP) install --quiet --editable .
	touch $@
.venv/torch: .venv/pip
	$(PIP) install --quiet torch==2.13.0 --extra-index-url $(TORCH_INDEX)
	touch $@
.venv/demo: .venv/torch .venv/core
	$(PIP) install --quiet --editable '.[sklearn,xgboost,lightgbm,torch,image]' --group demo
	touch $@
.venv/test: .venv/torch .venv/core
	$(PIP) install --quiet --editable . --group test --group demo
	touch $@
.venv/bench: .venv/test
	$(PIP) install --quiet --group bench
	touch $@
.venv/lint: .venv/core
	$(PIP) install --quiet --group lint
	touch $@
