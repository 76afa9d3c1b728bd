"""Why a chain's members agree: their variance where one thing at a time is another."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from pdlib.inference.slices import OnBatch, silent
from pdlib.methods import CHAIN
from pdlib.study.comparison import Row
from pdlib.study.run import Run

Members = Callable[[str, OnBatch], np.ndarray]  # of a subject, [E, Z, Y, X] in 0..1


def variants(run: Run, size: int) -> dict[str, Members]:
    """PD-DDPM's members by what is changed, each E = size; "start_mask" has one of each pre-segmenter of the ensemble.

    as_printed: as in Table 1, from one pre-segmentation for all. every_step: no index left out. start_noise: eta = 0,
    so that the start's noise alone differs. start_mask: the same noise for all, a pre-segmentation of its own for each.
    from_noise: DDPM, the same network from T' = T on.
    """
    row = Row.of(run, CHAIN, size)
    rows = {
        "as_printed": row,
        "every_step": Row.of(run, CHAIN, size, stride=1, calls=None),
        "start_noise": Row.of(run, CHAIN, size, rule="ddim", eta=0.0),
        "from_noise": Row.of(run, "ddpm", size),
    }
    found = {
        name: lambda subject, on_batch, one=one: one.members(subject, on_batch).values for name, one in rows.items()
    }
    compared, repeats = run.profile.comparison, run.profile.repeats.seeds
    begun = [run.weights(f"{compared.presegmenter}_{seed}") for seed in compared.deep_ensemble_seeds]
    seeded = [row.starting_from(dict.fromkeys(repeats, one), "seed") for one in begun]

    def start_mask(subject: str, on_batch: OnBatch) -> np.ndarray:
        return np.concatenate([one.members(subject, on_batch, 1).values for one in seeded])

    return found | {"start_mask": start_mask}


def spread(members: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """What members [E, V] differ by, and what they would if the reference [V] were one more of them.

    variance: over members (ddof 1), mean over voxels. due: half of the mean squared difference between a member and
    the reference. Half of that between two members is the variance, so for draws from the distribution of references
    both are the same (Fortin et al. 2014, J. Hydrometeorol. 15, 1708: spread and error of a sound ensemble match).
    """
    due = np.mean((members - reference) ** 2) / 2
    return {"variance": float(members.var(axis=0, ddof=1).mean()), "due": float(due)}


def spread_table(run: Run, made: dict[str, Members], subjects: list[str], on_batch: OnBatch = silent) -> pd.DataFrame:
    """`spread` of each variant inside the brains of subjects, label 2 left out: variant, subject, variance, due."""
    found = []
    for subject in subjects:
        volume = run.volume(subject)
        inside = volume.brain & ~volume.ignore
        reference = (volume.mask[inside] == 1).astype(np.float64)
        for name, members in made.items():
            drawn = members(subject, on_batch)[:, inside].astype(np.float64)
            found.append({"variant": name, "subject": subject, **spread(drawn, reference)})
    return pd.DataFrame(found)


def causes(table: pd.DataFrame) -> pd.Series:
    """How many times the variance as printed grows with each change, the largest first; means over subjects.

    A start mask of its own adds to the variance that there is; the other changes replace it.
    """
    variance = table.groupby("variant").variance.mean()
    printed = variance["as_printed"]
    grown = {
        "every_step": variance["every_step"],
        "start_mask": printed + variance["start_mask"],
        "from_noise": variance["from_noise"],
    }
    return (pd.Series(grown) / printed).sort_values(ascending=False)
