# The only set-up there is: each target makes .venv if it is absent, and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PIP_OPTIONS, for example, name an index with a torch that needs no CUDA libraries: docs/install.md.
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_OPTIONS) --editable
SOURCES := setup.py setup.cfg constraints.txt
# A process per core, up to four: each holds an inference engine, torch and a ROS domain of its own. A process that dies
# fails its test; the others take over the rest. A failure is printed when it occurs.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal --instafail

# The run-time half with ROS, without torch; and the whole.
RUN_TIME := $(VENV)/.run-time
STAMP := $(VENV)/.installed
# Laid over the whole by PYTHONPATH.
NOBLE := $(VENV)/noble

.PHONY: demo test noble coverage lint fuzz kill soak benchmarks corruptions clean

# Plays a drive through the node and writes demo_output/index.html. BAG is a bag or a video (default: the shipped drive),
# BUNDLE chooses the detector; DEMO_OPTIONS=--synthetic plays a drawn scene.
demo: $(RUN_TIME)
	$(BIN)/anomseg demo $(BAG) $(if $(BUNDLE),--bundle $(BUNDLE)) $(DEMO_OPTIONS)

# The whole suite. TEST_OPTIONS narrow it (-m "not slow") or set the number of processes (-n 0 for one, as --pdb needs).
test: $(STAMP) lint
	$(PYTEST) $(TEST_OPTIONS)
	$(MAKE) noble

# The suite with the coverage of lines and branches: a table, and htmlcov/index.html with what is missing.
coverage: $(STAMP)
	$(PYTEST) --cov --cov-report term --cov-report html $(TEST_OPTIONS)

# The run-time half with the OpenCV and numpy of Ubuntu 24.04, which rosdep installs; signals and kills need no repetition.
noble: $(STAMP) $(NOBLE)/.installed
	PYTHONPATH=$(CURDIR)/$(NOBLE) $(PYTEST) -m "not slow" test/core test/bags test/node test/commands/test_run.py \
		--ignore test/core/test_bundle_changes.py --ignore test/node/test_life.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Hostile inputs for all that comes from outside, and through the live node; ten minutes. FUZZ_OPTIONS choose the target
# (--target image), the seed and how many (--seed 1 --count 1000000), go on from the last result (--resume), or repeat one
# (--target image --only 17).
fuzz: $(STAMP)
	cd benchmarks && ../$(BIN)/python fuzz.py $(or $(FUZZ_OPTIONS),--seconds 600)

# kill -9 at 100 random moments of the commands that write; ten minutes.
kill: $(STAMP)
	cd benchmarks && ../$(BIN)/python kill.py $(KILL_OPTIONS)

# Two cameras, each with its node, for six hours; SOAK_OPTIONS="--resume" goes on with a slice that was interrupted.
soak: $(STAMP)
	cd benchmarks && ../$(BIN)/python soak.py $(SOAK_OPTIONS)

# Speed comparisons, each a ratio in one run, written to benchmarks/results. compression takes an hour on two cores.
# Apart from it, and measured on a quiet machine: benchmarks/road_anomaly.py, node_latency.py and multi_camera.py.
# On a machine with a GPU: benchmarks/gpu.py, seven minutes.
benchmarks: $(STAMP)
	cd benchmarks && for each in frame_path mide_formulation shared_memory metrics_speed train_step strips compression; do ../$(BIN)/python $$each.py || exit 1; done

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Into one environment, in steps: neither stamp takes anything of the other away.
$(RUN_TIME): $(SOURCES) | $(BIN)/python
	$(INSTALL) '.[ros]'
	touch $@

$(STAMP): $(SOURCES) | $(BIN)/python
	$(INSTALL) '.[ros,offline,heavy,openvino,cluster,completion,efficientnet,tensorrt-check,dev]'
	touch $(RUN_TIME) $@

$(NOBLE)/.installed: Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(NOBLE) 'opencv-python-headless==4.6.*' 'numpy==1.26.*'
	touch $@

# The library of `anomseg evaluate --corrupt`, with which its tests run, too: 240 MB.
corruptions: $(STAMP)
	$(INSTALL) '.[corruptions]'
	$(BIN)/python -m pip install --quiet --no-deps 'imagecorruptions-imaug>=1.1.5,<2'

clean:
	rm -rf $(VENV) build install log demo_output htmlcov .coverage* *.egg-info
