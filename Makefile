# Needs Python 3.11 and make; everything else goes into .venv, set up by whichever target is first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CORES ?= all
# test-all: everything; the continuous check narrows it to what `make test` left out
MARK ?= slow or not slow
VENV := .venv
READY := $(VENV)/.ready
RUN := PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# one thread per process: runs and tests are spread over the cores instead
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Modules are compiled when first used, not all at set-up: that halves its time.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(VENV)/bin/python -m pip install --quiet --no-compile
PINNED := $(PIP) --constraint constraints.txt

.PHONY: book test test-all lab full bench lint lock clean help
.DEFAULT_GOAL := help

help:             ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

$(READY): pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps --requirement requirements.lock
	$(PINNED) torch
	$(PINNED) --editable ".[book,test]"
	touch $@

book: $(READY)    ## run the notebooks (quick profile) and build book/_build/html/index.html
	$(RUN) snakemake --cores $(CORES) --rerun-incomplete --nolock --keep-going --quiet progress rules
	$(RUN) python book/build.py

test: $(READY)    ## the fast tests
	$(RUN) pytest -m "not slow and not browser" -n auto --maxprocesses 8

test-all: $(READY) ## every test: also slow ones, a browser on the built book, injected faults
	$(RUN) pytest -m "$(MARK)" -n auto --maxprocesses 8

lab: $(READY)     ## JupyterLab on the notebooks
	$(RUN) jupyter lab notebooks

full: $(READY)    ## every fold and seed of runs.yml into the table of record; hours, resumable
	$(RUN) snakemake --cores $(CORES) --rerun-incomplete --nolock --keep-going --config profile=full
	$(RUN) python -m benchmarks.record.collect

bench: $(READY)   ## speed and memory, as ratios
	$(RUN) python -m benchmarks

lint: $(READY)    ## ruff on code and notebooks; templates without outputs
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) nbstripout --verify --extra-keys metadata.papermill notebooks/*.ipynb

lock:             ## requirements.lock anew, by constraints.txt; needs uv, and a Linux machine
	uv pip compile pyproject.toml --extra book --extra test --constraint constraints.txt \
	  --python $(VENV)/bin/python --generate-hashes --no-annotate --no-header --quiet \
	  --output-file $(VENV)/lock
	awk '/^[A-Za-z]/ { kept = !/^(torch|triton|(nvidia|cuda)-[a-z0-9-]+)==/ } kept' \
	  $(VENV)/lock > requirements.lock

clean:            ## remove what was built; .venv and data stay
	rm -rf book/runs book/_build book/_generated runs .snakemake
