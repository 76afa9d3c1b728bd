"""The pre-segmentations that Table 2 starts from: checkpoints of each repeat's training, picked on validation."""

from collections.abc import Sequence

import pandas as pd

from pdlib.evaluation import records
from pdlib.methods import preseg_starts
from pdlib.study.run import Run
from pdlib.study.validation import pick_checkpoints
from pdlib.training.weights import Weights


def picked_checkpoints(run: Run, gaps: Sequence[float]) -> pd.DataFrame:
    """Checkpoints of the pre-segmenter's trainings, those closest to the gaps below its best (see `pick_checkpoints`).

    Columns: seed (of the repeat), start (as the tables name it, by rank), step, validation_dice.
    """
    found = []
    for seed in run.profile.repeats.seeds:
        name = f"{run.profile.comparison.presegmenter}_{seed}"
        history = records.read_table(run.place.trained.results / "training" / f"{name}.csv")
        curve = history[history.metric == "dice"].set_index("step").value
        steps = pick_checkpoints(curve, gaps)
        about = {"seed": seed, "start": preseg_starts(len(gaps))[1:]}
        found.append(pd.DataFrame({**about, "step": steps, "validation_dice": curve[steps].to_numpy()}))
    return pd.concat(found, ignore_index=True)


def checkpoint_weights(run: Run, checkpoints: pd.DataFrame) -> dict[str, dict[int, Weights] | None]:
    """What the rows of Table 2 start from, by the start's name: weights by the seed of the repeat; None: empty masks.

    checkpoints: as `picked_checkpoints` gives them.
    """
    name, found = run.profile.comparison.presegmenter, {"empty": None}
    for one in checkpoints.itertuples():
        kept = "best" if one.start == "best" else f"step_{one.step:06d}"
        found.setdefault(one.start, {})[one.seed] = run.weights(f"{name}_{one.seed}", kept)
    return found
