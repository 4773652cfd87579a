PYTHON ?= python3
BIN := .venv/bin

# One environment per tool that quantizes, outside of the repository: their requirements do not agree.
CONSUMERS ?= $(HOME)/.cache/zsq-consumers
TOOLS := onnxruntime nncf torchao mct webdataset

.PHONY: demo test consumers lint bench clean

demo: .venv/.installed
	$(BIN)/zsq run digits

test: .venv/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

consumers: $(TOOLS:%=$(CONSUMERS)/%/.installed)
	for tool in $(TOOLS); do \
	    OMP_NUM_THREADS=1 $(CONSUMERS)/$$tool/bin/python -m pytest -m consumers tests || exit 1; \
	done

$(CONSUMERS)/%/.installed: benchmarks/consumers/%.txt pyproject.toml
	$(PYTHON) -m venv $(CONSUMERS)/$*
	$(CONSUMERS)/$*/bin/python -m pip install --quiet -r $< --editable . pytest pytest-socket pytest-timeout
	touch $@

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

bench: .venv/.installed
	$(BIN)/python benchmarks/table.py cifar10-resnet20

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch .venv/.installed $@

clean:
	rm -rf .venv build dist *.egg-info
