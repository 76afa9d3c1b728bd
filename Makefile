# The two commands: `make reproduce` and `make test`. Each sets up its own .venv first.
PROFILE ?= cpu
PYTHON := .venv/bin/python
READY := .venv/.ready

# What the user gives reaches Python as it was typed: neither make nor a shell reads it.
unexport PROFILE FOLDS DATA OUT CHANGES CORES TARGETS DRY MEASURE
export PDLIB_PROFILE = $(value PROFILE)
export PDLIB_FOLDS = $(value FOLDS)
export PDLIB_DATA = $(value DATA)
export PDLIB_OUT_FOLDER = $(value OUT)
export PDLIB_CHANGES = $(value CHANGES)
export PDLIB_CORES = $(value CORES)
export PDLIB_TARGETS = $(value TARGETS)
export PDLIB_DRY = $(value DRY)
export PDLIB_MEASURE = $(value MEASURE)

export PYTHONHASHSEED := 0
# glibc keeps large freed blocks instead of handing each back to the system: a tenth faster on the CPU.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592
# Idle threads sleep: spinning, they take the processor from whatever else the machine does.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help reproduce test test-browser bench data lab book weights readme clean

help:
	@echo "make reproduce [PROFILE=smoke|cpu|night|gpu|paper] [DATA=folder] [OUT=folder] [CORES=n]   every table and figure"
	@echo "make reproduce CHANGES='{chain: {eta: 0.0}}'                                        the same with other settings"
	@echo "make reproduce FOLDS=all|'0 2'                                                      the same for other test folds"
	@echo "make reproduce DRY=1                                                                what would run"
	@echo "make reproduce MEASURE=0                                                            no estimate of the time first"
	@echo "make test                                                                           the tests"
	@echo "make test-browser                                                                   notebooks in JupyterLab, in a real browser"
	@echo "make bench                                                                          speed, into results/bench_*.csv"
	@echo "make data DATA=folder ACCEPT=1                                                      the WMH challenge's training cases, under its licence"
	@echo "make lab                                                                            JupyterLab on the notebooks"
	@echo "make book [PROFILE=smoke|cpu|night|gpu|paper] [OUT=folder]                               the executed notebooks as a book"
	@echo "make weights PROFILE=night                                                          its networks into weights/"
	@echo "make plan PROFILE=night                                                             what that run can show, before it"
	@echo "make readme                                                                         the numbers of README and docs/, from results/"
	@echo "make clean                                                                          removes the environment and the runs"

$(READY): pyproject.toml constraints.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pdlib needs Python 3.11 or newer")'
	python3 -m venv .venv
	"$(PYTHON)" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv torch
	.venv/bin/uv pip install --quiet --python "$(PYTHON)" --constraint constraints.txt --editable '.[test]'
	touch $(READY)

reproduce: $(READY)
	@"$(PYTHON)" -m pdlib.reproduce

test: $(READY)
	"$(PYTHON)" -m pytest -n 2 --dist loadfile tests --ignore tests/test_reproduce.py --ignore tests/browser
	CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 "$(PYTHON)" -m pytest -n 2 tests/kernels/test_kernels.py || test $$? -eq 5  # 5: no triton, so no test
	"$(PYTHON)" -m pytest --capture no tests/test_reproduce.py

test-browser: $(READY)
	@command -v chromium >/dev/null || { apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends chromium; } \
	|| { echo "make test-browser needs chromium: as root, apt-get install chromium"; exit 1; }
	.venv/bin/uv pip install --quiet --python "$(PYTHON)" --constraint constraints.txt --requirements pyproject.toml --extra browser
	"$(PYTHON)" -m pytest --noconftest --capture no tests/browser

bench: $(READY)
	for question in ops step operators chain train threads; do "$(PYTHON)" -m benchmarks.$$question || exit 1; done

data: $(READY)
	@"$(PYTHON)" -m pdlib.data.download "$${PDLIB_DATA:?make data wants DATA=folder}" $(if $(ACCEPT),--accept-licence)

lab: $(READY)
	"$(PYTHON)" -m pdlib.lab

book: export PDLIB_PROFILE = $(if $(filter file,$(origin PROFILE)),,$(value PROFILE))
book: $(READY)
	@"$(PYTHON)" -m pdlib.book

weights: $(READY)
	"$(PYTHON)" -m pdlib.study.committed

plan: $(READY)
	@"$(PYTHON)" -m pdlib.study.plan "$$PDLIB_PROFILE" "$$PDLIB_CHANGES"

readme: $(READY)
	"$(PYTHON)" -m pdlib.report.readme

clean:
	rm -rf runs .venv .snakemake
	git config --remove-section filter.notebook 2>/dev/null || true
