# make run    set everything up and open the window
# make test   set everything up and run every check
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
FUZZ_SECONDS ?= 60
# Tests run on every core; children of theirs start faster from compiled files than from sources.
CORES := --numprocesses logical --maxprocesses 4 --dist worksteal
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test lint types unit coverage fuzz bench accuracy screenshots system clean

run: $(VENV)/run.stamp
	@$(PY) main.py

test: system lint types unit fuzz

lint: $(VENV)/dev.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/dev.stamp
	$(PY) -m mypy

# Processes of their own: the worker's tests load torch, the window's must not, each sets its own environment. Those of a GPU,
# which say so where there is none, and those that time something run one by one.
unit: $(VENV)/dev.stamp
	$(PY) -m pytest $(CORES) tests/planner tests/resources tests/cli tests/test_layers.py
	$(PY) -m pytest $(CORES) tests/probes
	$(PY) -m pytest $(CORES) tests/gui
	$(PY) -m pytest tests/benchmarks
	$(PY) -m pytest tests/gpu

# The planner's branches that its own tests take; five times slower, so not in every run.
coverage: $(VENV)/dev.stamp
	$(PY) -m pytest $(CORES) tests/planner tests/resources tests/cli --cov --cov-report=term:skip-covered

fuzz: $(VENV)/dev.stamp
	$(PY) tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

bench: $(VENV)/dev.stamp
	$(PY) -m pytest tests/benchmarks --benchmark-enable --benchmark-only

# Whole-corpus checks, too long for every run; their reports are committed. One alone: make docs/accuracy-llama_cpp.txt
REPORTS := $(patsubst tests/accuracy/%.py,docs/accuracy-%.txt,$(filter-out %/__init__.py,$(wildcard tests/accuracy/*.py)))

accuracy: $(VENV)/dev.stamp
	@for report in $(REPORTS); do $(MAKE) --no-print-directory $$report || exit 1; done

.PHONY: $(REPORTS)
$(REPORTS): docs/accuracy-%.txt: $(VENV)/dev.stamp
	$(PY) tests/accuracy/$*.py > $@.new && mv $@.new $@

# Every tab in light, dark, at 200 % and at the smallest size, to be looked at one by one; and the README's pictures.
screenshots: $(VENV)/run.stamp
	$(PY) tests/screenshots.py build/screenshots --images docs/images

# The libraries Qt needs, installed when root and apt are at hand, else named.
system: $(VENV)/run.stamp
	@$(PY) -m cli.system_packages

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PY) -m pip install --quiet --editable ".[probe]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PY) -m pip install --quiet --editable ".[probe,dev]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
