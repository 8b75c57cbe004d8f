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

# 10,000 frames through the node, watching its memory; minutes to an hour.
soak: $(STAMP)
	cd benchmarks && ../$(BIN)/python soak.py $(SOAK_OPTIONS)

# Speed comparisons, each a ratio in one run, written to benchmarks/results. compression takes an hour on two cores.
# Apart from it, and measured on a quiet machine: benchmarks/road_anomaly.py and benchmarks/node_latency.py.
benchmarks: $(STAMP)
	cd benchmarks && for each in frame_path mide_formulation shared_memory metrics_speed train_step strips compression; do ../$(BIN)/python $$each.py || exit 1; done

$(STAMP): setup.py setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ros,offline,openvino,cluster,efficientnet,dev]'
	touch $@

clean:
	rm -rf $(VENV) build install log demo_output *.egg-info
