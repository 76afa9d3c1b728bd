"""Notebooks as jobs: where each lies, what it stands on, and what it reads of a profile."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path

from pydantic import BaseModel

from pdlib.methods import CHAIN, SCORED, jobs, refine_name
from pdlib.paths import Layout, committed_weights, output_root
from pdlib.profiles import Profile, ProfileError, load_profile

TRAINED_SECTIONS = (  # of the jobs in paths.PROFILE_JOBS
    *("seed", "fine_tune", "repeats", "data", "segmenters", "denoiser", "wolleb2021", "tdpm"),
    *("distillation", "latent", "start_matched", "noise_level"),
)
_MACHINE = ("machine.device", "machine.precision", "machine.batch_size")
_CROPS = ("data.multiple", "data.t1_dropped")
_SAMPLED = ("seed", "fine_tune", "repeats", *_CROPS, *_MACHINE, "ensemble", "chain", "comparison.presegmenter")
_READ = {  # the sections of the profile that a notebook reads: its jobs run again when one of them changes
    "00_tour": (*_SAMPLED, "sweep.t_primes", "comparison.deep_ensemble_seeds"),
    "01_prepare_data": (
        *("seed", "repeats"),
        *(f"data.{name}" for name in ("folds", "clip_percentiles", "cases_per_site", "grid_scale", "label2_fraction")),
    ),
    "02_train_segmenters": (
        "seed",
        "fine_tune",
        *_CROPS,
        *_MACHINE,
        "ensemble",
        "segmenters.objective",
        "segmenters.fit",
    ),
    "03_train_ddpm": (*_SAMPLED, "denoiser", "voxel_tolerance"),
    "04_compare_methods": (*_SAMPLED, "comparison", "tdpm.limits", "statistics"),
    "05_sweep_t_prime": (*_SAMPLED, "sweep", "statistics"),
    "06_ensemble_size": (*_SAMPLED, "members", "comparison.deep_ensemble_seeds", "statistics"),
    "07_preseg_accuracy": (*_SAMPLED, "preseg_accuracy", "statistics"),
    "08_truncate_both_ends": (*_SAMPLED, "truncation", "refine", "fundus", "comparison.methods", "statistics"),
    "09_read_the_kernels": (),
    "10_fewer_calls": (*_SAMPLED, "fewer_calls", "statistics"),
    "11_claims": ("seed", "comparison.presegmenter", "fewer_calls.few_calls", "statistics"),
    "12_wolleb2021": (*_SAMPLED, "denoiser.diffusion", "wolleb2021"),
    "14_distillation": (*_SAMPLED, "distillation"),
    "15_latent": (*_SAMPLED, "denoiser.diffusion.schedule", "latent"),
    "16_start_matched": (*_SAMPLED, "denoiser.diffusion", "segmenters.objective", "start_matched"),
    "17_tdpm_generator": (*_SAMPLED, "tdpm"),
    "18_noise_level": (*_SAMPLED, "noise_level"),
    "13_all_folds": (
        *("seed", "data.folds", "comparison.presegmenter", "fewer_calls.few_calls", "preseg_accuracy", "statistics"),
    ),
}
_BUILDS_ON = {  # trainings that look at these rows on validation subjects, with the first repeat's networks
    "14_distillation": [CHAIN],
    "15_latent": [CHAIN],
    "16_start_matched": [CHAIN],
    "17_tdpm_generator": ["ddpm"],
    "18_noise_level": [CHAIN],
}


def place_of(profile: Profile, out: str = "", fold: int | None = None) -> Layout:
    """Where a fold of a profile lies (None: its own fold); with changed settings, apart from the profile's."""
    fold = profile.fold if fold is None else fold
    if not 0 <= fold < profile.data.folds:
        raise ProfileError(f"fold {fold}: profile {profile.name} has folds 0 to {profile.data.folds - 1}")
    if not profile.changes:
        return Layout(output_root(out), profile.name, fold)
    digest = hashlib.sha256(json.dumps(profile.changes, sort_keys=True).encode()).hexdigest()[:8]
    own = load_profile(profile.name)
    retrained = any(getattr(profile, part) != getattr(own, part) for part in TRAINED_SECTIONS)
    retrained |= "tdpm" in profile.rows - own.rows
    return Layout(output_root(out), profile.name, fold, digest, retrained)


def needed(notebook: str, profile: Profile) -> list[str]:
    """The notebook runs whose data and networks a notebook stands on when it runs by itself.

    A profile with a `reference` needs no training whose network the repository comes with.
    """
    methods = {
        "00_tour": [CHAIN, "ddpm", "deep_ensemble"],
        "04_compare_methods": profile.comparison.methods,
        "05_sweep_t_prime": [CHAIN],
        "06_ensemble_size": [CHAIN, "ddpm", "deep_ensemble", *profile.members.agreement_methods],
        "07_preseg_accuracy": [CHAIN],
        "08_truncate_both_ends": [CHAIN],
        "10_fewer_calls": profile.fewer_calls.starts,
    }
    if notebook in ("11_claims", "13_all_folds"):
        return ["01_prepare_data", *(() if profile.reference else SCORED)]
    if notebook in ("01_prepare_data", "09_read_the_kernels"):
        return []
    if notebook in _BUILDS_ON:
        first = profile.repeats.seeds[:1]
        return ["01_prepare_data", *_trainings(_BUILDS_ON[notebook], profile, first)]
    found = ["01_prepare_data", *_trainings(methods.get(notebook, []), profile)]
    if notebook == "07_preseg_accuracy" and profile.reference:  # earlier checkpoints are a training's own
        found.append(f"02_train_segmenters.{profile.comparison.presegmenter}_{profile.repeats.seeds[0]}")
    return list(dict.fromkeys(found))


def comes_along(job: str, profile: Profile) -> bool:
    """Whether the repository comes with the network that a training makes, and the profile takes it from there."""
    notebook, _, what = job.partition(".")
    made = {
        "02_train_segmenters": what,
        "03_train_ddpm": f"denoiser_{what}",
        "08_truncate_both_ends": refine_name(profile.chain.t_stop, False),
        "16_start_matched": f"start_matched_{what}",
        "18_noise_level": "noise_level",
    }
    return profile.reference is not None and notebook in made and committed_weights(made[notebook]).exists()


def _trainings(methods: Iterable[str], profile: Profile, seeds: Sequence[int] | None = None) -> list[str]:
    """The trainings that rows take, of some repeats; None: of all."""
    compared = profile.comparison
    how = {"presegmenter": compared.presegmenter, "deep_ensemble_seeds": list(compared.deep_ensemble_seeds)}
    found = jobs(list(methods), **how, seeds=list(profile.repeats.seeds if seeds is None else seeds))
    return [job for job in found if not comes_along(job, profile)]


def _before(training: str, profile: Profile) -> list[str]:
    """What a training waits for: a repeat's own networks, and what the first repeat has trained for all of them."""
    notebook, _, what = training.partition(".")
    if notebook != "16_start_matched":
        return needed(notebook, profile)
    first = f"{notebook}.{profile.repeats.seeds[0]}"
    own = ["01_prepare_data", *_trainings(_BUILDS_ON[notebook], profile, [int(what)])]
    return own if training == first else [*own, first]


def graph(profile: Profile) -> dict[str, list[str]]:
    """Every job of a fold, and the jobs that each waits for.

    A job is a notebook's name, with a dot and what it is for where the notebook runs several times. The tour, 04, 06
    and 07 wait for the points of the sweep, since they go on from its samples.
    """
    points = [f"05_sweep_t_prime.{t_prime}" for t_prime in profile.sweep.t_primes]
    starts = {f"10_fewer_calls.{start}": [start] for start in profile.fewer_calls.starts}
    found = {"01_prepare_data": []}
    for training in [job for notebook in SCORED for job in needed(notebook, profile)[1:]]:
        found.setdefault(training, _before(training, profile))
    found |= {point: needed("05_sweep_t_prime", profile) for point in points}
    found |= {job: ["01_prepare_data", *_trainings(start, profile)] for job, start in starts.items()}
    found |= {
        "00_tour": [*points, *needed("00_tour", profile)],
        "04_compare_methods": [*points, *needed("04_compare_methods", profile)],
        "05_sweep_t_prime": points,
        "06_ensemble_size": [*points, *needed("06_ensemble_size", profile)],
        "07_preseg_accuracy": [*points, *needed("07_preseg_accuracy", profile)],
        "08_truncate_both_ends": needed("08_truncate_both_ends", profile),
        "09_read_the_kernels": [],
        "10_fewer_calls": list(starts),
        "11_claims": list(SCORED),
    }
    return found


def rule_name(job: str) -> str:
    """What the Snakefile calls the rule of a job."""
    return "notebook_" + "".join(letter if letter.isalnum() else "_" for letter in job)


def sections_read(job: str, profile: Profile) -> dict:
    """The settings that a job reads, by their paths in the profile."""
    notebook, _, what = job.partition(".")
    paths = _READ[notebook]
    if notebook == "02_train_segmenters":
        architecture = what.rpartition("_")[0]
        own = ("probabilistic_objective",) if architecture == "probabilistic_unet" else ()
        paths += tuple(f"segmenters.{name}" for name in (architecture, *own))
    elif what and notebook == "05_sweep_t_prime":  # one point reads no list of points
        paths = tuple("sweep.ensemble_size" if path == "sweep" else path for path in paths)
    found = {path: _plain(reduce(getattr, path.split("."), profile)) for path in paths}
    if what and notebook == "10_fewer_calls":
        del found["fewer_calls"]["starts"]
    return found


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def cells_digest(notebook: Path) -> str:
    """A digest of a notebook's code: the same whatever outputs and whatever text it was saved with."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]
