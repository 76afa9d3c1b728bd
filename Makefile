# The two commands: `make reproduce` and `make test`. Each sets up its own .venv first.
PROFILE ?= cpu
DATA ?=
FOLDS ?=
OUT ?= $(if $(DATA),real-data,.)
CORES ?= $(shell nproc)
TARGETS ?=
PYTHON := .venv/bin/python
READY := .venv/.ready

export PYTHONHASHSEED := 0
# glibc keeps large freed blocks instead of handing each back to the system: a tenth faster on the CPU.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592
export TQDM_MININTERVAL ?= 5

.DEFAULT_GOAL := help
.PHONY: help reproduce test bench lab readme clean

help:
	@echo "make reproduce [PROFILE=smoke|cpu|gpu|paper] [DATA=folder] [OUT=folder] [CORES=n]   every table and figure"
	@echo "make reproduce FOLDS=all|'0 2'                                                      the same for other test folds"
	@echo "make test                                                                           the tests"
	@echo "make bench                                                                          speed, into results/bench_*.csv"
	@echo "make lab                                                                            JupyterLab on the notebooks"
	@echo "make readme                                                                         README's numbers from results/"
	@echo "make clean                                                                          removes the environment and the runs"

$(READY): pyproject.toml constraints.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pdlib needs Python 3.11 or newer")'
	python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv torch
	.venv/bin/uv pip install --quiet --python $(PYTHON) --constraint constraints.txt --editable '.[test]'
	touch $(READY)

# Whoever holds the lock knows that no other workflow lives there, so a lock that a killed one left behind may go.
reproduce: $(READY)
	@mkdir -p "$(OUT)/runs"
	@flock "$(OUT)/runs/.lock" sh -ec '\
	  folds=$$($(PYTHON) -m pdlib.workflow folds "$(PROFILE)" "$(FOLDS)"); \
	  out=$$(realpath "$(OUT)"); data=$$(test -z "$(DATA)" || realpath -m "$(DATA)"); \
	  set -- --snakefile Snakefile --directory "$$out" --config profile=$(PROFILE) "data=$$data" "out=$$out"; \
	  $(PYTHON) -m snakemake --quiet all --unlock "$$@" >/dev/null 2>&1 || true; \
	  run() { $(PYTHON) -m snakemake --cores $(CORES) --resources gpu=1 --rerun-incomplete --quiet rules host "$$@"; }; \
	  for fold in $$folds; do run "$$@" "fold=$$fold" -- '"$(TARGETS)"'; done; \
	  test "$(FOLDS)" != all || run "$$@" -- all_folds'

test: $(READY)
	$(PYTHON) -m pytest -n 2 --dist loadfile tests --ignore tests/test_reproduce.py
	CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 $(PYTHON) -m pytest -n 2 tests/test_kernels.py || test $$? -eq 5  # 5: no triton, so no test
	$(PYTHON) -m pytest --capture no tests/test_reproduce.py

bench: $(READY)
	for question in ops step operators chain train; do $(PYTHON) -m benchmarks.$$question || exit 1; done

lab: $(READY)
	$(PYTHON) -m jupyterlab notebooks

readme: $(READY)
	$(PYTHON) -m pdlib.report.readme README.md

clean:
	rm -rf runs .venv .snakemake
