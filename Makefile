# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
VIS ?= tensorboard
# Two test files at a time, the longest first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=25
export PYTHONNOUSERSITE := 1
# OpenMP's threads sleep while they wait: on a machine that does other things too, spinning costs a factor of ten.
export OMP_WAIT_POLICY := passive

.PHONY: env demo test test-fast test-exhaustive lint bench docs clean

env: $(VENV)/.installed

# The first Python from 3.10 to 3.12 that really runs (a version manager's shim may exist and not run).
$(VENV)/.installed: pyproject.toml constraints.txt
	@set -e; for p in $(PYTHON) python3 python3.11 python3.12 python3.10 none; do \
	  if [ $$p = none ]; then echo "error: no Python 3.10, 3.11 or 3.12 found: install one, or name it: make PYTHON=/path/to/python"; exit 1; fi; \
	  if $$p -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then break; fi; done; \
	echo "make env: $$p -> $(VENV) (a few minutes, about 8 GB)"; \
	[ -x $(BIN)/python ] || $$p -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# From nothing to a scored mesh: rough poses, 5 deg off. A few minutes on two cores.
demo: env
	rm -rf $(DEMO)
	$(BIN)/pmni synth $(DEMO)/scene --shape figure --jitter 1 --rotation-noise-deg 5 --truth $(DEMO)/truth
	$(BIN)/ns-train pmni --data $(DEMO)/scene --output-dir $(DEMO)/runs --timestamp run --vis $(VIS)
	$(BIN)/pmni eval --load-config $(DEMO)/runs/scene/pmni/run/config.yml --truth $(DEMO)/truth --output-dir $(DEMO)/result
	$(BIN)/python examples/01_picture.py $(DEMO)/scene $(DEMO)/result $(DEMO)/picture.png
	@echo "Look at $(DEMO)/picture.png, $(DEMO)/result/mesh.ply and $(DEMO)/result/metrics.json"

bench: env
	$(BIN)/python benchmarks/run_all.py

lint: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pyright

test-fast: env lint
	$(PYTEST) -m "not slow and not exhaustive"

test: env lint
	$(PYTEST)

# The campaigns that take too long for each change, about an hour: every command killed nine times at random moments
# (54 kills), 20,000 damaged files for the readers and 750 for `pmni prepare`, each of the broken scenes through the
# command line, and thirty trainings with random buttons and Ctrl-C. `make test` runs a part of each.
test-exhaustive: env
	$(PYTEST) -m exhaustive

# The documentation as a site, in site/.
docs: env
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python scripts/command_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) $(DEMO) outputs site
