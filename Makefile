# The only set-up there is: each target makes .venv if it is absent.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint soak benchmarks clean

# Plays BAG (default: a synthetic drive) through the node and writes demo_output/index.html. BUNDLE chooses the detector.
demo: $(STAMP)
	$(BIN)/anomseg demo $(BAG) $(if $(BUNDLE),--bundle $(BUNDLE)) $(DEMO_OPTIONS)

# The whole suite; TEST_OPTIONS such as -m "not slow" narrow it.
test: $(STAMP) lint
	$(BIN)/python -m pytest $(TEST_OPTIONS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): setup.py setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ros,offline,dev]'
	touch $@

clean:
	rm -rf $(VENV) build install log demo_output *.egg-info
