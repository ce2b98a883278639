# make run    install into .venv and run the whole job on the built-in handbook
# make test   everything a change needs: notebooks, pytest, lint, types, sync
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
CORES := $(shell nproc 2>/dev/null || echo 2)
export OMP_NUM_THREADS ?= $(CORES)
export TOKENIZERS_PARALLELISM ?= false
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE :=  # hundreds of processes run this package: compile it once

.PHONY: run filter test notebooks pytest lint types sync test-slow attack test-optimum test-llama bases bench lab readme export tiny reports clean

$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

run: $(VENV)/.installed
	distillery run

# The whole filters line on the built-in data, without a model or a network: labels, scorer, promise, pool, page.
filter: $(VENV)/.installed
	HF_HUB_OFFLINE=1 distillery filter run builtin

test: export HF_HUB_OFFLINE = 1
test: $(VENV)/.installed
	@$(MAKE) --no-print-directory --jobs 4 sync lint types notebooks pytest

# These train, export or run a whole line; their tests in pytest are quicker, and `make test-slow` runs them all.
LONG := 16_distill|80_extractive|36_fidelity|15_export|50_rag|44_filter|46_filter_line|73_filter_run|67_reevaluate|70_pretrain|filter
notebooks: $(VENV)/.installed
	OMP_NUM_THREADS=1 nbdev_test --n_workers 1 --skip_file_re '^(_|\.|($(LONG))\.ipynb)'

pytest: $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m pytest -q -n $(CORES) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	ruff check .

types: $(VENV)/.installed
	mypy

# Cleaning and exporting must change nothing: what is committed is what the notebooks say. Tried on a copy, since tests read the package.
sync: $(VENV)/.installed
	@copy=$$(mktemp -d); trap "rm -rf $$copy" EXIT; git ls-files -zco --exclude-standard | tar --null -T - -cf - | tar -xf - -C $$copy; cd $$copy; \
	git init -q; git add -A; export PYTHONPATH=$$copy; nbdev_clean && nbdev_export && python tests/readme.py || exit 1; \
	changed=$$(git diff --name-only; git ls-files -o --exclude-standard); \
	if [ "$$changed" ]; then echo "$$changed"; echo 'sync: make export readme changes the files above; commit what they made'; exit 1; fi

export: $(VENV)/.installed
	nbdev_clean
	nbdev_export

readme: $(VENV)/.installed
	python tests/readme.py

test-slow: $(VENV)/.installed
	HF_HUB_OFFLINE=1 python -m pytest -q -m slow
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 nbdev_test --n_workers $(CORES) --flags slow

# Attacks on documents, servers, neighbours and the disk, counted by row of findings; weekly.
attack: $(VENV)/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -q -m attack

# Optimum as the exporter, in a second environment: it holds transformers at another major.
$(VENV)-optimum/.installed: pyproject.toml constraints-optimum.txt
	python3 -m venv $(VENV)-optimum
	$(VENV)-optimum/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-optimum/bin/python -m pip install --quiet --constraint constraints-optimum.txt --editable '.[all,optimum]' pytest
	touch $@

test-optimum: $(VENV)-optimum/.installed
	HF_HUB_OFFLINE=1 $(VENV)-optimum/bin/python -m pytest -q -m '' tests/test_export_optimum.py

# llama.cpp, in an environment of its own: built from source for any processor of this family, a quarter of an hour, once.
$(VENV)-llama/.installed: constraints-llama.txt
	python3 -m venv $(VENV)-llama
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" $(VENV)-llama/bin/python -m pip install --quiet --requirement constraints-llama.txt
	touch $@

test-llama: $(VENV)/.installed $(VENV)-llama/.installed
	HF_HUB_OFFLINE=1 python -m pytest -q -m '' tests/test_gguf.py

# Twins of real bases, from preflight to package: the table, and its page in reports/. Minutes; what was done is kept by twin.
bases: $(VENV)/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python tests/bases.py

bench: $(VENV)/.installed
	for b in benchmarks/*.py; do python $$b || exit 1; done

lab: $(VENV)/.installed
	jupyter lab nbs/start.ipynb

# Run the built-in job and keep its pages and its small store; then ask every optional question of sixteen pages, for a visitor.
reports: $(VENV)/.installed
	distillery run
	python tests/keep_run.py
	distillery run --docs distillery/data/handbook --preset handbook --config reports/small.yaml --name "every question"
	python tests/keep_run.py small

# Make the built-in models again, from nothing, and put them into the package with their cards. Hours on a laptop; after a stop, make tiny RESUME=--resume.
tiny: $(VENV)/.installed
	for size in tiny mini; do \
	  OMP_NUM_THREADS=1 torchrun --nproc-per-node $(CORES) -m distillery.models.pretrain --size $$size --out distillery/weights/$$size $(RESUME) && \
	  python -m distillery.models.card distillery/weights/$$size || exit 1; \
	done

clean:
	rm -rf $(VENV) .distillery runs
