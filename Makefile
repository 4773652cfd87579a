PYTHON ?= python3
BIN := .venv/bin

# One environment per tool that quantizes, outside of the repository: their requirements do not agree.
CONSUMERS ?= $(HOME)/.cache/zsq-consumers
TOOLS := onnxruntime nncf torchao mct modelopt quark aimet brevitas executorch webdataset
# Programs that take what zsq writes, and need no extra of it.
TAKERS := datasets openvino litert onnx2tf

# The lowest versions that pyproject.toml allows, in an environment of their own.
LOWEST := $(CURDIR)/.venv-lowest

.PHONY: demo test test-lowest consumers consumers-lowest lint bench check-gpu bench-gpu clean

demo: .venv/.installed
	$(BIN)/zsq run digits

# Processes that tests start find zsq compiled, also where the environment keeps Python from it.
test test-lowest: export PYTHONDONTWRITEBYTECODE =

test: .venv/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist worksteal

consumers: $(TOOLS:%=$(CONSUMERS)/%/.installed) $(TAKERS:%=$(CONSUMERS)/%/.installed)
	for tool in $(TOOLS) $(TAKERS); do \
	    OMP_NUM_THREADS=1 $(CONSUMERS)/$$tool/bin/python -m pytest -m consumers tests || exit 1; \
	done

$(CONSUMERS)/%/.installed: benchmarks/consumers/%.txt pyproject.toml
	$(PYTHON) -m venv $(CONSUMERS)/$*
	$(CONSUMERS)/$*/bin/python -m pip install --quiet -r $< --editable . pytest pytest-socket pytest-timeout
	touch $@

consumers-lowest: $(TOOLS:%=$(CONSUMERS)/%-lowest/.installed)
	for tool in $(TOOLS); do \
	    OMP_NUM_THREADS=1 $(CONSUMERS)/$$tool-lowest/bin/python -m pytest -m consumers tests || exit 1; \
	done

# The tool's lowest versions, on top of the environment that test-lowest installs.
$(CONSUMERS)/%-lowest/.installed: $(LOWEST)/.installed
	$(PYTHON) -m venv $(CONSUMERS)/$*-lowest
	site() { $$1 -c "import site; print(site.getsitepackages()[0])"; }; \
	    echo "import site; site.addsitedir('$$(site $(LOWEST)/bin/python)')" \
	    > "$$(site $(CONSUMERS)/$*-lowest/bin/python)/lowest.pth"
	$(PYTHON) .ci/floors.py $* > $(CONSUMERS)/$*-lowest/floors.txt
	$(CONSUMERS)/$*-lowest/bin/python -m pip install --quiet --requirement $(CONSUMERS)/$*-lowest/floors.txt
	touch $@

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

bench: .venv/.installed
	$(BIN)/python benchmarks/table.py cifar10-resnet20

# On one NVIDIA card: the tests marked gpu, and speed into benchmarks/results/gpu.json.
check-gpu: .venv/.installed-dev
	$(BIN)/python -m pytest -m gpu tests

bench-gpu: .venv/.installed
	$(BIN)/python benchmarks/gpu.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch .venv/.installed $@

$(LOWEST)/.installed: pyproject.toml .ci/floors.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) .ci/floors.py dev > $(LOWEST)/floors.txt
	$(LOWEST)/bin/python -m pip install --quiet --requirement $(LOWEST)/floors.txt --editable .
	touch $@

clean:
	rm -rf .venv $(LOWEST) build dist *.egg-info
