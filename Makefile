# The two commands: `make reproduce` and `make test`. Each sets up its own .venv first.
PROFILE ?= cpu
PYTHON := .venv/bin/python
READY := .venv/.ready

# What the user gives reaches Python as it was typed: neither make nor a shell reads it.
unexport PROFILE FOLDS DATA OUT CHANGES CORES CLUSTER TARGETS DRY MEASURE FOLDER NOTEBOOKS SYSTEMS PYTHONS
export PDLIB_PROFILE = $(value PROFILE)
export PDLIB_FOLDS = $(value FOLDS)
export PDLIB_DATA = $(value DATA)
export PDLIB_OUT_FOLDER = $(value OUT)
export PDLIB_CHANGES = $(value CHANGES)
export PDLIB_CORES = $(value CORES)
export PDLIB_CLUSTER = $(value CLUSTER)
export PDLIB_TARGETS = $(value TARGETS)
export PDLIB_DRY = $(value DRY)
export PDLIB_MEASURE = $(value MEASURE)
export PDLIB_FOLDER = $(value FOLDER)
export PDLIB_NOTEBOOKS = $(value NOTEBOOKS)
export PDLIB_SYSTEMS = $(value SYSTEMS)
export PDLIB_PYTHONS = $(value PYTHONS)

export PYTHONHASHSEED := 0
# glibc keeps large freed blocks, and on huge pages, instead of handing each back to the system: a tenth to a quarter
# faster on the CPU.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1000000000:glibc.malloc.trim_threshold=10000000000
# Idle threads sleep: spinning, they take the processor from whatever else the machine does.
export OMP_WAIT_POLICY ?= PASSIVE

# Packages of an extra; conda's environment has all of them.
extra = $(if $(READY),.venv/bin/uv pip install --quiet --python "$(PYTHON)" --constraint constraints.txt --requirements pyproject.toml --extra $(1))

.DEFAULT_GOAL := help
.PHONY: help reproduce confirm test test-slow faults test-browser bench data lab book weights plan workshop wheels readme verify clean

help:
	@printf '%-33s %s\n' \
	"make reproduce" "every table and figure" \
	"  PROFILE=smoke|cpu|night|gpu" "  how large a study, also: paper; unasked: cpu" \
	"  DATA=folder" "  real cases in the place of the phantom" \
	"  OUT=folder" "  runs, results and figures below another folder" \
	"  FOLDS=all|'0 2'" "  other test folds" \
	"  CHANGES='{chain: {eta: 0.0}}'" "  other settings" \
	"  TARGETS='05_sweep_t_prime'" "  some of its jobs alone, with what they stand on" \
	"  CORES=n" "  how many jobs at a time; unasked: as many as there are cores" \
	"  CLUSTER=slurm" "  on a cluster, see docs/scale.md" \
	"  DRY=1" "  only what would run" \
	"  MEASURE=0" "  no estimate of the time first" \
	"make data DATA=folder ACCEPT=1" "the WMH challenge's training cases, under its licence" \
	"  WITH='test 3dt1'" "  the 110 test cases, the 3D T1 scans as well" \
	"make lab [FOLDER=folder]" "JupyterLab on the notebooks, or on a folder of them" \
	"make book [PROFILE=...] [OUT=...]" "the executed notebooks as a book" \
	"make plan PROFILE=night" "what that run can show, before it" \
	"make confirm PROFILE=night" "after it: its ledger, on subjects of its own" \
	"make weights PROFILE=night" "its networks into weights/" \
	"make workshop" "sheets for students, and each solution tried" \
	"  NOTEBOOKS='00 05'" "  of some notebooks; unasked: of all" \
	"make wheels" "all packages in a folder, for laptops without internet" \
	"  FOLDER=folder" "  unasked: runs/wheels" \
	"  SYSTEMS='linux macos'" "  unasked: both" \
	"  PYTHONS='3.11 3.12'" "  unasked: the one that runs here" \
	"make readme" "the numbers of README and docs/, from results/" \
	"make verify [PROFILE=...]" "whether all that follows from results/ still does" \
	"make bench" "speed, into results/bench_*.csv" \
	"make test" "the tests" \
	"make test-slow" "those that take hours: every notebook by itself, kills, a cluster, a browser" \
	"make faults" "both, and the faults they put in, counted into results/faults.csv" \
	"make test-browser" "notebooks in JupyterLab, in a real browser" \
	"make clean" "removes the environment and the runs"

$(READY): pyproject.toml constraints.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pdlib needs Python 3.11 or newer")'
	python3 -m venv .venv
	"$(PYTHON)" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv torch
	.venv/bin/uv pip install --quiet --python "$(PYTHON)" --constraint constraints.txt --editable '.[test]'
	touch $(READY)

reproduce: $(READY)
	@$(if $(value CLUSTER),$(call extra,slurm))
	@"$(PYTHON)" -m pdlib.reproduce

confirm: $(READY)
	@"$(PYTHON)" -m pdlib.study.confirm

FAULTS =
faults: FAULTS = --faults results/faults.csv
faults: test test-slow

test: $(READY)
	"$(PYTHON)" -m pytest $(FAULTS) -n 2 --dist loadfile tests --ignore tests/test_reproduce.py --ignore tests/browser --ignore tests/slow
	CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 "$(PYTHON)" -m pytest -n 2 tests/kernels/test_kernels.py || test $$? -eq 5  # 5: no triton, so no test
	"$(PYTHON)" -m pytest $(FAULTS) --capture no tests/test_reproduce.py

test-slow: $(READY) test-browser
	$(call extra,slurm)
	"$(PYTHON)" -m pytest $(FAULTS) --capture no tests/slow

test-browser: $(READY)
	@command -v chromium >/dev/null || { apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends chromium; } \
	|| { echo "make test-browser needs chromium: as root, apt-get install chromium"; exit 1; }
	$(call extra,browser)
	"$(PYTHON)" -m pytest --noconftest --capture no tests/browser

bench: $(READY)
	for question in ops step operators chain train threads; do "$(PYTHON)" -m benchmarks.$$question || exit 1; done

data: $(READY)
	@"$(PYTHON)" -m pdlib.data.download "$${PDLIB_DATA:?make data wants DATA=folder}" $(if $(ACCEPT),--accept-licence) $(if $(filter test,$(value WITH)),--with-test) $(if $(filter 3dt1,$(value WITH)),--with-3dt1)

lab: $(READY)
	"$(PYTHON)" -m pdlib.lab

book: export PDLIB_PROFILE = $(if $(filter file,$(origin PROFILE)),,$(value PROFILE))
book: $(READY)
	@"$(PYTHON)" -m pdlib.book

weights: $(READY)
	"$(PYTHON)" -m pdlib.study.committed

plan: $(READY)
	@"$(PYTHON)" -m pdlib.study.plan "$$PDLIB_PROFILE" "$$PDLIB_CHANGES"

workshop: $(READY)
	@"$(PYTHON)" -m pdlib.workshop

wheels: $(READY)
	@"$(PYTHON)" -m pdlib.wheels

readme: $(READY)
	"$(PYTHON)" -m pdlib.report.readme

verify: export PDLIB_PROFILE = $(if $(filter file,$(origin PROFILE)),,$(value PROFILE))
verify: $(READY)
	@"$(PYTHON)" -m pdlib.verify

clean:
	rm -rf runs .venv .snakemake
	git config --remove-section filter.notebook 2>/dev/null || true
