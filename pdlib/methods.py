"""The rows of Table 1, one entry each. A new row is an entry here and its name in a profile's list.

A row is a source (the training it begins with), a start and a finish of the one reverse chain in `sampler`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

PRESEGMENTER = "presegmenter"  # the segmenter that the profile names
GREY = "#595959"  # of whatever has no colour of its own
CHAIN = "pd_ddpm"  # the method that the study is about
SCORED = (  # the notebooks whose scores the ledger reads
    "04_compare_methods",
    "05_sweep_t_prime",
    "06_ensemble_size",
    "07_preseg_accuracy",
    "08_truncate_both_ends",
    "10_fewer_calls",
)
DENOISERS = {  # training of a chain's network: the notebook that does it
    "denoiser": "03_train_ddpm",
    "wolleb2021": "12_wolleb2021",
    "student": "14_distillation",
    "latent": "15_latent",
    "start_matched": "16_start_matched",
    "unmatched": "16_start_matched",
}
REPEATED = ("denoiser", "start_matched")  # those that every repeat trains anew, as it does its pre-segmenter
ONE_STEP = {"refine": "08_truncate_both_ends", "refiner": "16_start_matched"}  # of a "one_step" finish's network
LEVELS = "18_noise_level"  # trains the network that the rule "noise_level" asks


@dataclass(frozen=True)
class Method:
    """What a row is made of.

    Args:
        title: what a reader is shown.
        source: the training it begins with, or PRESEGMENTER; None begins with nothing.
        start: how the chain starts from the source (a key of `sampler.STARTS`); None: no chain, the source is all.
        finish: how the chain ends (a key of `sampler.FINISHES`).
        members: "ensemble" (of the profile's size), "one", or "seeds" (a network of each of several seeds).
        mask_only: the last network of a "one_step" finish sees the state alone, not the image.
        own_t_prime: T' is chosen for this row on the validation fold; otherwise it is the paper's.
        denoiser: the training of the chain's network, a key of DENOISERS.
        last: of a "one_step" finish, the training of its network, a key of ONE_STEP.
        colour: of the row in every figure; they can be told apart by the colour-blind.
        settings: what the row has in place of the profile's chain settings, such as {"rule": "ddim", "eta": 0.0}.
    """

    title: str
    source: str | None
    start: str | None = None
    finish: str = "run_to_zero"
    members: str = "ensemble"
    mask_only: bool = False
    own_t_prime: bool = False
    denoiser: str = "denoiser"
    last: str = "refine"
    settings: Mapping[str, object] = field(default_factory=dict)
    colour: str = field(default=GREY, compare=False)


METHODS = {
    "unet": Method("U-Net", "unet", members="one", colour="#99BFD0"),
    "attention_unet": Method("Attention U-Net", "attention_unet", members="one", colour="#0072B2"),
    "unet_plus_plus": Method("U-Net++", "unet_plus_plus", members="one", colour="#00406B"),
    "bayesian_unet": Method("Bayesian U-Net", "bayesian_unet", colour="#BAB062"),
    "probabilistic_unet": Method("Probabilistic U-Net", "probabilistic_unet", colour="#E69F00"),
    "ddpm": Method("DDPM", None, start="gaussian", colour="#000000"),
    "wolleb2021": Method("DDPM, Wolleb's recipe", None, start="gaussian", denoiser="wolleb2021", colour="#808080"),
    "tdpm": Method("TDPM", "tdpm", start="given", own_t_prime=True, colour="#C2728F"),
    "es_ddpm": Method("ES-DDPM", "probabilistic_unet", start="preseg", own_t_prime=True, colour="#904A70"),
    "pd_ddpm": Method("PD-DDPM", PRESEGMENTER, start="preseg", colour="#D55E00"),
    "addpm": Method("ADDPM", PRESEGMENTER, start="preseg", finish="one_step", colour="#009E73"),
    "addpm_mask_only": Method(
        "ADDPM, mask only", PRESEGMENTER, start="preseg", finish="one_step", mask_only=True, colour="#7CC8AF"
    ),
    "pd_ddpm_1": Method("PD-DDPM, one member", PRESEGMENTER, start="preseg", members="one", colour="#BB564C"),
    "x0_jump": Method("x0 jump", PRESEGMENTER, start="preseg", finish="x0_jump", colour="#8C3D00"),
    "start_matched": Method(
        "PD-DDPM, start-matched",
        PRESEGMENTER,
        start="preseg",
        denoiser="start_matched",
        settings={"rule": "start_matched"},
        colour="#980752",
    ),
    "unmatched": Method(
        "PD-DDPM, trained below T' on a logit",
        PRESEGMENTER,
        start="preseg",
        denoiser="unmatched",
        settings={"rule": "ddim", "eta": 1.0},
        colour="#D42794",
    ),
    "refiner": Method(
        "Refiner", PRESEGMENTER, start="mask", finish="one_step", members="one", last="refiner", colour="#5E2F86"
    ),
    "noise_level": Method(
        "PD-DDPM, noise-level estimation",
        PRESEGMENTER,
        start="preseg",
        settings={"rule": "noise_level", "eta": 0.0},
        colour="#B4834F",
    ),
    "distilled": Method(
        "PD-DDPM, distilled",
        PRESEGMENTER,
        start="preseg",
        denoiser="student",
        settings={"rule": "ddim", "eta": 0.0, "spacing": "trailing"},
        colour="#2D6A31",
    ),
    "latent": Method("PD-DDPM, latent", PRESEGMENTER, start="preseg", denoiser="latent", colour="#1596B5"),
    "deep_ensemble": Method("Pre-segmenter, ensemble of seeds", PRESEGMENTER, members="seeds", colour="#50B5F1"),
}


@dataclass(frozen=True)
class Rule:
    """A way of stepping down the chain: what a reader is shown, and what `sampler.Chain` takes."""

    title: str
    step: str
    eta: float


RULES = {
    "ddpm": Rule("ancestral", "ddpm", 1.0),
    "ddim": Rule("DDIM", "ddim", 0.0),
    "ddim_eta_1": Rule("DDIM, eta 1", "ddim", 1.0),
    "dpm_solver": Rule("DPM-Solver++", "dpm_solver", 0.0),
    "start_matched": Rule("start-matched", "start_matched", 1.0),
    "start_matched_eta_0": Rule("start-matched, eta 0", "start_matched", 0.0),
    "noise_level": Rule("DDIM at the estimated level", "noise_level", 0.0),
}


def rule_key(step: str, eta: float, finish: str = "run_to_zero") -> str:
    """What the column `rule` of a score holds: a key of RULES; "x0_jump" for a chain that jumps at its first call.

    Only DDIM and start-matched steps have an eta; one that has no entry in RULES is named by its number.
    """
    if finish == "x0_jump":
        return "x0_jump"
    usual = {"ddim": 0.0, "start_matched": 1.0}.get(step, eta)
    return step if eta == usual else f"{step}_eta_{eta:g}"


def preseg_starts(checkpoints: int) -> list[str]:
    """What Table 2 starts from, in the column `start`: nothing, then checkpoints of rising validation Dice.

    checkpoints: how many there are, the best among them, which has a name of its own: its step differs from fold to
    fold, its rank does not.
    """
    return ["empty", *(f"checkpoint_{rank}" for rank in range(1, checkpoints)), "best"]


def jobs(names: list[str], *, presegmenter: str, deep_ensemble_seeds: list[int], seeds: list[int]) -> list[str]:
    """The notebook runs whose networks these rows use, each once. ValueError for a name that is no row.

    seeds: of the study's repeats, each with a pre-segmenter and denoisers of its own.
    """
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]!r}: choose one of {list(METHODS)}")
    found = {}
    for method in (METHODS[name] for name in names):
        if method.source == PRESEGMENTER:
            own = deep_ensemble_seeds if method.members == "seeds" else seeds
            found |= dict.fromkeys(f"02_train_segmenters.{presegmenter}_{seed}" for seed in own)
        elif method.source == "tdpm":
            found["17_tdpm_generator"] = None
        elif method.source is not None:
            own = seeds if method.source == presegmenter else [0]
            found |= dict.fromkeys(f"02_train_segmenters.{method.source}_{seed}" for seed in own)
        if method.start is not None:
            found |= dict.fromkeys(training_jobs(DENOISERS, method.denoiser, seeds))
        if method.finish == "one_step":
            found |= dict.fromkeys(training_jobs(ONE_STEP, method.last, seeds))
        if method.settings.get("rule") == "noise_level":
            found[LEVELS] = None
    return list(found)


def training_jobs(notebooks: Mapping[str, str], training: str, seeds: list[int]) -> list[str]:
    """The runs of a training's notebook: one a seed where the repeats train it anew, the first seed's if it is trained
    once beside such a training.

    notebooks: by training, DENOISERS or ONE_STEP.
    """
    notebook = notebooks[training]
    if notebook not in map(DENOISERS.get, REPEATED):
        return [notebook]
    return [f"{notebook}.{seed}" for seed in (seeds if training in REPEATED else seeds[:1])]


def refine_name(t_stop: int, mask_only: bool) -> str:
    """The training of ADDPM's last network for a t_stop of the paper."""
    return f"one_step_{t_stop:04d}{'_mask' if mask_only else ''}"


def tdpm_name(t_prime: int) -> str:
    """The training of TDPM's generator for a T' of the paper."""
    return f"tdpm_{t_prime:04d}"


def seeded_name(training: str, seed: int) -> str:
    """The training of a chain's network in a repeat of the study: of its own where the repeats train it anew."""
    return f"{training}_{seed}" if training in REPEATED else training


def student_name(calls: int, of: int) -> str:
    """The training of a distilled denoiser for so many calls; with as many as the first teacher makes, that one's."""
    return "denoiser_0" if calls == of else f"student_{calls:04d}"
