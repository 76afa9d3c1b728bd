"""The graph of notebook runs: papermill for each job, cached and resumable. `make reproduce` calls it.

What waits for what is `pdlib.graph`; what a job leaves behind stands here. Every path is relative to the output root,
the working directory: what a user calls a folder never meets Snakemake's braces.
"""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from pdlib.graph import cells_digest, graph, place_of, rule_name, sections_read
from pdlib.methods import DENOISERS, REPEATED, SCORED
from pdlib.paths import BENCHMARKS, CONFIGS, NOTEBOOKS, PROFILE_JOBS, QUESTIONS, SHARED_JOBS, measured_devices
from pdlib.profiles import load_profile
from pdlib.progress import IN_WORKFLOW

ASKED = json.loads(Path(os.environ["PDLIB_GRAPH"]).read_text(encoding="utf-8"))
CHANGED = load_profile(ASKED["profile"], ASKED["changes"])
FOLD = ASKED["fold"]
PLACE = replace(place_of(CHANGED, ASKED["out"], FOLD), out=Path())
# Data and networks that the changes leave alone are the profile's own, made by its own settings.
OWN = CHANGED if PLACE.own_networks else load_profile(ASKED["profile"])
TRAINED = PLACE.trained
GRAPH = graph(CHANGED)
SPEED = [f"speed_{device}" for device in measured_devices()]


def profile_of(notebook):
    return OWN if notebook in PROFILE_JOBS else CHANGED


def both(folder, *names):
    return [str(folder / name) for name in names]


def pictures(*names):
    return both(PLACE.figures, *(f"{name}.{kind}" for name in names for kind in ("png", "pdf")))


def tables(*names):
    return both(PLACE.figures, *(f"{name}.{kind}" for name in names for kind in ("csv", "md")))


def results(*names):
    return both(PLACE.results, *(f"{name}.csv" for name in names))


def trainings(*names):
    return both(TRAINED.results / "training", *(f"{name}.csv" for name in names))


def outputs(job):
    """What a job leaves behind beside its mark and its executed notebook."""
    notebook, _, what = job.partition(".")
    if what and notebook in REPEATED_TRAININGS:
        name = REPEATED_TRAININGS[notebook].format(what)
        return trainings(name, *([f"{name}_validation"] if notebook == "16_start_matched" else []))
    return {
        "01_prepare_data": [str(PLACE.cases), str(PLACE.folds)],
        "12_wolleb2021": trainings("wolleb2021", "wolleb2021_rules"),
        "04_compare_methods": pictures("fig1", "fig2", "scores")
        + tables("table1", "table1_by_site")
        + results("table1_scores"),
        "05_sweep_t_prime": pictures("fig3") + results("t_prime_scores"),
        "06_ensemble_size": pictures("fig4", "agreement", "spread")
        + tables("agreement")
        + results("ensemble_scores", "agreement_scores", "risk_curves", "spread"),
        "07_preseg_accuracy": pictures("starts") + tables("table2") + results("preseg_scores", "preseg_checkpoints"),
        "08_truncate_both_ends": pictures("truncation")
        + tables("truncation")
        + results("truncation_scores", "truncation_grid")
        + (tables("fundus") + results("fundus_scores") if CHANGED.fundus else []),
        "09_read_the_kernels": both(TRAINED.shared.figures, *(f"{n}.{k}" for n in SPEED for k in ("png", "pdf"))),
        "10_fewer_calls": pictures("fewer_calls") + tables("fewer_calls") + results("fewer_calls_scores"),
        "11_claims": tables("claims") + both(PLACE.figures, "findings.md"),
        "14_distillation": trainings("distillation", *STUDENTS),
        "15_latent": trainings("autoencoder", "latent", "latent_ceiling", "latent_calls"),
        "18_noise_level": trainings("noise_level", "noise_level_errors", "noise_level_dice"),
        "17_tdpm_generator": trainings("tdpm_states", *(f"tdpm_{t_prime:04d}" for t_prime in OWN.tdpm.t_primes)),
    }.get(job, [])


STUDENTS = [f"student_{calls:04d}" for calls in OWN.distillation.students]
REPEATED_TRAININGS = {  # the training that a job with a dot is, by its notebook
    "02_train_segmenters": "{}",
    **{DENOISERS[training]: f"{training}_{{}}" for training in REPEATED},
}


def as_it_is(value):
    """As a function of wildcards: in what one returns, Snakemake takes no braces for a wildcard."""
    return lambda wildcards: value


def files(job):
    """What a job reads outside the output root: a digest of it, for a clone's folder may have braces too."""
    read = []
    if job == "01_prepare_data" and not ASKED["data"]:
        read = [CONFIGS / "phantom.yaml"]
    elif job == "08_truncate_both_ends" and CHANGED.fundus:
        read = [CONFIGS / "phantom_fundus.yaml"]
    elif job == "09_read_the_kernels":
        read = [BENCHMARKS / f"bench_{name}_{device}.csv" for device in measured_devices() for name in QUESTIONS]
    return hashlib.sha256(b"".join(path.read_bytes() for path in read)).hexdigest()[:16]


def knobs(job):
    """A job's own parameters: what tells it from the other runs of its notebook."""
    notebook, _, what = job.partition(".")
    if not what:
        return {"01_prepare_data": {"data": ASKED["data"]}, "13_all_folds": {"test_folds": EVERY_FOLD}}.get(job, {})
    if notebook == "02_train_segmenters":
        architecture, _, seed = what.rpartition("_")
        return {"architecture": architecture, "seed": int(seed)}
    if notebook in REPEATED_TRAININGS:
        return {"seed": int(what)}
    return {"t_primes": [int(what)]} if notebook == "05_sweep_t_prime" else {"starts": [what]}


def parameters(job):
    """The parameters of a papermill run, and what else makes it run again: settings, code and files that it reads."""
    notebook = job.partition(".")[0]
    profile = profile_of(notebook)
    given = {"profile": profile.name, "out": ASKED["out"], "changes": profile.changes}
    given |= {} if notebook in SHARED_JOBS else {"fold": FOLD}
    return {
        "notebook": notebook,
        "given": as_it_is(json.dumps(given | knobs(job))),
        "reads": as_it_is(json.dumps(sections_read(job, profile), sort_keys=True)),
        "code": cells_digest(NOTEBOOKS / f"{notebook}.ipynb"),
        "files": files(job),
    }


def threads(job):
    machine = CHANGED.machine
    return machine.workers if job == "01_prepare_data" else machine.threads


def gpus(job):
    return 0 if job in ("01_prepare_data", "11_claims", "13_all_folds") else CHANGED.machine.gpus_per_job


def urgency(job):
    """What many wait for comes first."""
    notebook, _, what = job.partition(".")
    first = {"03_train_ddpm": 100, "02_train_segmenters": 95, "12_wolleb2021": 90, "16_start_matched": 80}
    first |= {"17_tdpm_generator": 85, "08_truncate_both_ends": 75, "05_sweep_t_prime": 72}
    first |= {"04_compare_methods": 70}  # it takes longest, and waits for all of these
    return first.get(notebook, 50 if what else 0)


def done(*jobs):
    """Marks of jobs. Jobs wait for them, not for results: these are committed, and come without the weights behind them."""
    return [str(PLACE.done(job)) for job in jobs]


EVERY_FOLD = list(range(CHANGED.data.folds))
ALL_FOLDS = PLACE.shared.figures / "all_folds"
PYTHON = sys.executable
# OMP_NUM_THREADS is the job's, so that the same profile computes the same numbers anywhere.
RUN = (
    f"{IN_WORKFLOW}=1 OMP_NUM_THREADS={{threads}} OMP_WAIT_POLICY=PASSIVE "
    "{PYTHON:q} -m pdlib.workflow {params.notebook:q} {log:q} {params.given:q}"
)


rule all:
    input:
        done(*GRAPH),
        [path for job in GRAPH for path in outputs(job)],


for job in GRAPH:

    rule:
        name:
            rule_name(job)
        input:
            done(*GRAPH[job]),
        output:
            touch(done(job)),
            outputs(job),
        log:
            str(PLACE.executed(job)),
        params:
            **parameters(job),
        threads: threads(job)
        priority: urgency(job)
        resources:
            gpu=gpus(job),
        shell:
            RUN


# Not a part of a fold's graph: what every fold has left behind is pooled once all of them have run.
rule all_folds:
    input:
        [str(replace(PLACE, fold=fold).done(job)) for fold in EVERY_FOLD for job in SCORED],
    output:
        touch(done("13_all_folds")),
        both(ALL_FOLDS, *(f"{name}.{kind}" for name in ("fig3", "fig4") for kind in ("png", "pdf"))),
        both(ALL_FOLDS, *(f"{name}.{kind}" for name in ("table1", "table2", "claims") for kind in ("csv", "md"))),
    log:
        str(PLACE.executed("13_all_folds")),
    params:
        **parameters("13_all_folds"),
    threads: threads("13_all_folds")
    shell:
        RUN
