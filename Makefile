# Two commands matter: `make demo` (see it work) and `make test` (prove that it does). Both make .venv themselves.

PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
LMMS := .venv-lmms
LMMS_CHECKPOINT ?= runs/demo
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
WORKERS ?= 2
PYTEST_ARGS ?=
MUTATION_ARGS ?=

.PHONY: demo test pytest lint format parity lowest locked lock lmms mutation wheel clean

demo: $(VENV)/.installed
	$(VENV)/bin/python -m vr_jax.main --config=configs/moss_chatv.py:tiny --workdir=runs/demo --mode=all

# Style and types are checked beside the tests, in the time that these wait.
test: $(VENV)/.installed-test
	$(MAKE) --no-print-directory --jobs=2 lint pytest

pytest: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/basedpyright

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# The reference implementations, for the parity tests to compare with live. PyTorch first: pinned, so that golden
# files and live runs speak of the same numerics.
parity: $(VENV)/.installed-parity

# Which small changes of the pure parts their own unit tests notice: an hour; MUTATION_ARGS="--sample=2" is quicker.
mutation: $(VENV)/.installed-test
	$(PIP) -e '.[mutation]'
	$(VENV)/bin/python -m benchmarks.mutation $(MUTATION_ARGS)

# Builds dist/*.whl, installs it in an empty environment, and runs it from an empty directory.
wheel: $(VENV)/.installed-test
	rm -rf dist build && $(VENV)/bin/python -m build
	dir=$$(mktemp -d) && $(PYTHON) -m venv $$dir/venv && \
	  $$dir/venv/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl && \
	  cd $$dir && JAX_PLATFORMS=cpu venv/bin/vr-jax --config=grpo:tiny --workdir=run --mode=all \
	    --config.data.simulate.videos=8 --config.data.test_fraction=0.25 --config.sft.steps=4 \
	    --config.rl.steps=1 --config.eval.examples=4 && test -s run/report.html && rm -r $$dir

# The tests with the oldest versions that setup.py admits, in an environment of their own.
lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e . packaging
	$(LOWEST)/bin/python tests/lowest_versions.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c $(LOWEST)/constraints.txt -e '.[test]'
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# lmms-eval in an environment of its own: whether its programs make of replies what the tests know of them, and the
# score that it gives our server, beside `vr-jax eval`'s.
lmms: $(VENV)/.installed-test
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements/lmms.txt -c requirements/lmms.lock
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lmms-eval==0.7.3
	$(LMMS)/bin/python tests/golden/answer_rules.py --check
	$(VENV)/bin/python -m benchmarks.lmms_score --python=$(LMMS)/bin/python --checkpoint=$(LMMS_CHECKPOINT)

# Every package of the tests at the version and with the hash of requirements/cpu.lock, in .venv.
locked: | $(VENV)/bin/python
	$(PIP) --require-hashes -r requirements/cpu.lock
	$(PIP) --no-deps --no-build-isolation -e .
	touch $(VENV)/.installed $(VENV)/.installed-test

# Writes requirements/cpu.lock anew, from the newest versions that setup.py admits, and lmms.lock.
# What torch brings along for GPUs depends on the build of torch that is installed.
lock: $(VENV)/.installed-test
	$(PIP) uv
	(sed '/^#/!d' requirements/cpu.lock; $(VENV)/bin/uv pip compile setup.py --quiet --extra=test \
	  --universal --python-version=3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links) > requirements/cpu.new
	mv requirements/cpu.new requirements/cpu.lock
	(sed '/^#/!d' requirements/lmms.lock; $(VENV)/bin/uv pip compile requirements/lmms.txt --quiet \
	  --python-version=3.11 --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	  | grep -Ev '^(cuda|nvidia|triton)') > requirements/lmms.new
	mv requirements/lmms.new requirements/lmms.lock

# A stamp is newer than setup.py exactly when its install is up to date.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "no virtual environment could be made; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed: setup.py vr_jax/__init__.py | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: setup.py vr_jax/__init__.py | $(VENV)/bin/python
	$(PIP) -e '.[test]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-parity: setup.py vr_jax/__init__.py | $(VENV)/bin/python
	$(PIP) torch==2.13.0
	$(PIP) -e '.[parity]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) $(LOWEST) .jax_cache .hypothesis .pytest_cache .ruff_cache build dist *.egg-info
