"""The graph of notebook runs: papermill for each job, cached and resumable. `make reproduce` calls it."""

import json
import os
import sys

from pdlib.methods import SCORED, jobs
from pdlib.paths import BENCHMARKS, CONFIGS, NOTEBOOKS, QUESTIONS, layout, measured_devices
from pdlib.workflow import IN_WORKFLOW, load_profile

PROFILE = config.get("profile", "cpu")
SETTINGS = load_profile(PROFILE)
FOLD = int(config.get("fold", SETTINGS["common"]["fold"]))
PLACE = layout(PROFILE, config.get("out", ""), FOLD)
SHARED = {"profile": PROFILE, "out": str(PLACE.out)}
THREADS = SETTINGS["threads"]
PYTHON = sys.executable

ARCHITECTURES = SETTINGS["02_train_segmenters"].pop("architectures")
PRESEGMENTER = SETTINGS["04_compare_methods"]["presegmenter"]
COMPARED = SETTINGS["04_compare_methods"]
NEEDED = jobs(COMPARED["methods"], presegmenter=PRESEGMENTER, deep_ensemble_seeds=COMPARED["deep_ensemble_seeds"])
TDPM_T_PRIMES = SETTINGS["03_train_ddpm"]["tdpm"]["t_primes"]
T_PRIMES = SETTINGS["05_sweep_t_prime"]["t_primes"]
SOLVED = SETTINGS["10_fewer_calls"]["starts"]

if config.get("data") and not os.path.isdir(config["data"]):
    raise WorkflowError(f"DATA={config['data']}: no such folder")


def notebook(name):
    """The notebook as an input: editing it reruns its jobs."""
    return str(NOTEBOOKS / f"{name}.ipynb")


def done(job):
    return str(PLACE.done(job))


def executed(job):
    return str(PLACE.executed(job))


def settings(name, **more):
    """The profile's parameters of a notebook, with the fold and those of the job, as JSON."""
    own = {"fold": FOLD} if "fold" in SETTINGS[name] else {}
    return json.dumps(SHARED | SETTINGS[name] | own | more)


def training_table(name):
    return str(PLACE.results / "training" / f"{name}.csv")


def both(folder, *names):
    return [str(folder / name) for name in names]


# A notebook as a job: OMP_NUM_THREADS is the job's, so that the same profile computes the same numbers anywhere.
ENVIRONMENT = f"{IN_WORKFLOW}=1 OMP_NUM_THREADS={{threads}}"
RUN = ENVIRONMENT + " {PYTHON} -m pdlib.workflow {params.name} {log:q} {params.parameters:q}"


# Jobs wait for marks in runs/, not for results: these are committed, and come without the weights behind them.
PREPARED = done("01_prepare_data")
DENOISER = done("03_train_ddpm")
TRAINED = [done(job) for job in NEEDED]
COMPARED_JOBS = [done(job) for job in SCORED]


# What `make bench` has measured, for notebook 09: on the CPU, and on a GPU where there was one.
MEASURED = [str(BENCHMARKS / f"bench_{name}_{device}.csv") for device in measured_devices() for name in QUESTIONS]
SPEED = [both(PLACE.shared.figures, f"speed_{device}.png", f"speed_{device}.pdf") for device in measured_devices()]


rule all:
    input:
        both(PLACE.figures, *(f"fig{n}.{kind}" for n in (1, 2, 3, 4) for kind in ("png", "pdf"))),
        both(PLACE.figures, *(f"table{n}.{kind}" for n in (1, "1_by_site", 2) for kind in ("csv", "md"))),
        both(PLACE.figures, "truncation.png", "truncation.pdf", "truncation.csv", "truncation.md"),
        both(PLACE.figures, "fundus.csv", "fundus.md"),
        both(PLACE.figures, "fewer_calls.png", "fewer_calls.pdf", "fewer_calls.csv", "fewer_calls.md"),
        both(PLACE.figures, *(f"agreement.{kind}" for kind in ("png", "pdf", "csv", "md"))),
        both(PLACE.figures, "claims.csv", "claims.md"),
        SPEED,
        COMPARED_JOBS,
        TRAINED,


rule prepare_data:
    input:
        notebook("01_prepare_data"),
        [] if config.get("data") else str(CONFIGS / "phantom.yaml"),
    output:
        touch(PREPARED),
        str(PLACE.cases),
        str(PLACE.folds),
    log:
        executed("01_prepare_data"),
    params:
        name="01_prepare_data",
        parameters=settings("01_prepare_data", data=config.get("data", "")),
    threads: SETTINGS["01_prepare_data"]["workers"]
    shell:
        RUN


rule train_segmenter:
    input:
        notebook("02_train_segmenters"),
        PREPARED,
    output:
        touch(done("02_train_segmenters.{architecture}_{seed}")),
        training_table("{architecture}_{seed}"),
    wildcard_constraints:
        architecture="|".join(ARCHITECTURES),
        seed=r"\d+",
    log:
        executed("02_train_segmenters.{architecture}_{seed}"),
    params:
        name="02_train_segmenters",
        parameters=lambda wildcards: settings(
            "02_train_segmenters",
            architecture=wildcards.architecture,
            network=ARCHITECTURES[wildcards.architecture],
            seed=int(wildcards.seed),
        ),
    threads: THREADS
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule train_denoiser:
    input:
        notebook("03_train_ddpm"),
        PREPARED,
    output:
        touch(DENOISER),
        training_table("denoiser"),
        training_table("tdpm_states"),
        [training_table(f"tdpm_{t_prime:04d}") for t_prime in TDPM_T_PRIMES],
    log:
        executed("03_train_ddpm"),
    params:
        name="03_train_ddpm",
        parameters=settings("03_train_ddpm"),
    threads: THREADS
    priority: 100
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule train_wolleb2021:
    input:
        notebook("12_wolleb2021"),
        PREPARED,
    output:
        touch(done("12_wolleb2021")),
        training_table("wolleb2021"),
        training_table("wolleb2021_rules"),
    log:
        executed("12_wolleb2021"),
    params:
        name="12_wolleb2021",
        parameters=settings("12_wolleb2021"),
    threads: THREADS
    priority: 90
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule sample_t_prime:
    input:
        notebook("05_sweep_t_prime"),
        DENOISER,
        done(f"02_train_segmenters.{PRESEGMENTER}_0"),
    output:
        touch(done("05_sweep_t_prime.{t_prime}")),
    wildcard_constraints:
        t_prime=r"\d+",
    log:
        executed("05_sweep_t_prime.{t_prime}"),
    params:
        name="05_sweep_t_prime",
        parameters=lambda wildcards: settings("05_sweep_t_prime", t_primes=[int(wildcards.t_prime)]),
    threads: THREADS
    priority: 50
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


POINTS = [done(f"05_sweep_t_prime.{t_prime}") for t_prime in T_PRIMES]


rule truncate_both_ends:
    input:
        notebook("08_truncate_both_ends"),
        str(CONFIGS / "phantom_fundus.yaml"),
        DENOISER,
        done(f"02_train_segmenters.{PRESEGMENTER}_0"),
    output:
        touch(done("08_truncate_both_ends")),
        both(PLACE.figures, "truncation.png", "truncation.pdf", "truncation.csv", "truncation.md"),
        both(PLACE.figures, "fundus.csv", "fundus.md"),
        str(PLACE.results / "truncation_scores.csv"),
        str(PLACE.results / "truncation_grid.csv"),
        str(PLACE.results / "fundus_scores.csv"),
    log:
        executed("08_truncate_both_ends"),
    params:
        name="08_truncate_both_ends",
        parameters=settings("08_truncate_both_ends"),
    threads: THREADS
    priority: 60
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


def networks_of(methods):
    """Marks of the trainings that rows of Table 1 begin with and sample by."""
    return [done(job) for job in jobs(methods, presegmenter=PRESEGMENTER, deep_ensemble_seeds=[])]


rule sample_fewer_calls:
    input:
        notebook("10_fewer_calls"),
        lambda wildcards: networks_of([wildcards.start]),
    output:
        touch(done("10_fewer_calls.{start}")),
    wildcard_constraints:
        start="|".join(SOLVED),
    log:
        executed("10_fewer_calls.{start}"),
    params:
        name="10_fewer_calls",
        parameters=lambda wildcards: settings("10_fewer_calls", starts=[wildcards.start]),
    threads: THREADS
    priority: 50
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule fewer_calls:
    input:
        notebook("10_fewer_calls"),
        [done(f"10_fewer_calls.{start}") for start in SOLVED],
    output:
        touch(done("10_fewer_calls")),
        both(PLACE.figures, "fewer_calls.png", "fewer_calls.pdf", "fewer_calls.csv", "fewer_calls.md"),
        str(PLACE.results / "fewer_calls_scores.csv"),
    log:
        executed("10_fewer_calls"),
    params:
        name="10_fewer_calls",
        parameters=settings("10_fewer_calls"),
    threads: THREADS
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule compare_methods:
    input:
        notebook("04_compare_methods"),
        POINTS,
        TRAINED,
    output:
        touch(done("04_compare_methods")),
        both(PLACE.figures, *(f"fig{n}.{kind}" for n in (1, 2) for kind in ("png", "pdf"))),
        both(PLACE.figures, "table1.csv", "table1.md", "table1_by_site.csv", "table1_by_site.md"),
        str(PLACE.results / "table1_scores.csv"),
    log:
        executed("04_compare_methods"),
    params:
        name="04_compare_methods",
        parameters=settings("04_compare_methods"),
    threads: THREADS
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule sweep_t_prime:
    input:
        notebook("05_sweep_t_prime"),
        POINTS,
    output:
        touch(done("05_sweep_t_prime")),
        both(PLACE.figures, "fig3.png", "fig3.pdf"),
        str(PLACE.results / "t_prime_scores.csv"),
    log:
        executed("05_sweep_t_prime"),
    params:
        name="05_sweep_t_prime",
        parameters=settings("05_sweep_t_prime"),
    threads: THREADS
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule ensemble_size:
    input:
        notebook("06_ensemble_size"),
        POINTS,
        TRAINED,
    output:
        touch(done("06_ensemble_size")),
        both(PLACE.figures, "fig4.png", "fig4.pdf", *(f"agreement.{kind}" for kind in ("png", "pdf", "csv", "md"))),
        str(PLACE.results / "ensemble_scores.csv"),
        str(PLACE.results / "agreement_scores.csv"),
    log:
        executed("06_ensemble_size"),
    params:
        name="06_ensemble_size",
        parameters=settings("06_ensemble_size"),
    threads: THREADS
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule preseg_accuracy:
    input:
        notebook("07_preseg_accuracy"),
        POINTS,
    output:
        touch(done("07_preseg_accuracy")),
        both(PLACE.figures, "table2.csv", "table2.md"),
        str(PLACE.results / "preseg_scores.csv"),
    log:
        executed("07_preseg_accuracy"),
    params:
        name="07_preseg_accuracy",
        parameters=settings("07_preseg_accuracy"),
    threads: THREADS
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule read_the_kernels:
    input:
        notebook("09_read_the_kernels"),
        MEASURED,
    output:
        touch(done("09_read_the_kernels")),
        SPEED,
    log:
        executed("09_read_the_kernels"),
    params:
        name="09_read_the_kernels",
        parameters=settings("09_read_the_kernels"),
    threads: THREADS
    resources:
        gpu=SETTINGS["gpus_per_job"],
    shell:
        RUN


rule claims:
    input:
        notebook("11_claims"),
        COMPARED_JOBS,
    output:
        touch(done("11_claims")),
        both(PLACE.figures, "claims.csv", "claims.md"),
    log:
        executed("11_claims"),
    params:
        name="11_claims",
        parameters=settings("11_claims"),
    threads: THREADS
    shell:
        RUN


# Not a part of a fold's graph: what every fold has left behind is pooled once all of them have run.
EVERY_FOLD = range(SETTINGS["01_prepare_data"]["folds"])
ALL_FOLDS = PLACE.shared.figures / "all_folds"


rule all_folds:
    input:
        notebook("13_all_folds"),
        [layout(**SHARED, fold=fold).done(job) for fold in EVERY_FOLD for job in SCORED],
    output:
        touch(done("13_all_folds")),
        both(ALL_FOLDS, *(f"{name}.{kind}" for name in ("fig3", "fig4") for kind in ("png", "pdf"))),
        both(ALL_FOLDS, *(f"{name}.{kind}" for name in ("table1", "table2", "claims") for kind in ("csv", "md"))),
    log:
        executed("13_all_folds"),
    params:
        name="13_all_folds",
        parameters=settings("13_all_folds", test_folds=list(EVERY_FOLD)),
    threads: THREADS
    shell:
        RUN
