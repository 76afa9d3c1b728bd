"""What a row's title has to say beside its name: that the row is too weak to be beaten with honour."""

import pandas as pd

from pdlib.diffusion.schedule import scale_t_prime
from pdlib.evaluation import records
from pdlib.report.values import paired_values, select
from pdlib.study.run import Run
from pdlib.study.validation import state_faults


def remarks(run: Run, scores: pd.DataFrame) -> dict[str, str]:
    """Remarks by the key of a row in METHODS; rows that need none are left out. scores: those of Table 1.

    TDPM: a generator is weak whose states were outside `tdpm.limits` of the raters', or of the references' where there
    are no raters, at the T' of the row (notebook 17). Probabilistic U-Net, and ES-DDPM that starts from it: weak where
    its mean Dice is more than `comparison.weak_gap` below the U-Net's.
    """
    found, methods = {}, {*scores.method}
    if "tdpm" in methods and _weak_generator(run, scores):
        found["tdpm"] = "weak generator"
    if {"unet", "probabilistic_unet"} <= methods:
        pairs = paired_values(*(select(scores, {"method": name}) for name in ("unet", "probabilistic_unet")), "dice")
        if (pairs.ours - pairs.theirs).mean() > run.profile.comparison.weak_gap:
            found |= {"probabilistic_unet": "weak"} | ({"es_ddpm": "weak start"} if "es_ddpm" in methods else {})
    return found


def _weak_generator(run: Run, scores: pd.DataFrame) -> bool:
    settings, chain, used = run.profile.tdpm, run.profile.chain, {*select(scores, {"method": "tdpm"}).t_prime}
    states = records.read_table(run.place.trained.results / "training" / "tdpm_states.csv")
    steps = run.profile.denoiser.diffusion.schedule.steps
    own = states.t_prime.map(lambda t_prime: scale_t_prime(t_prime, chain.paper_steps, steps))
    mine = [rows.set_index("state") for _, rows in states[own.isin(used)].groupby("t_prime")]
    beside = ["rater" if "rater" in one.index else "diffused" for one in mine]
    return any(state_faults(one, settings.limits.arguments(), of) for one, of in zip(mine, beside, strict=True))
