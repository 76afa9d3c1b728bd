"""How well the noise level is read off a state, and what a chain makes of it: for the notebook on noise levels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pdlib.diffusion import levels
from pdlib.diffusion.formulas import q_sample
from pdlib.diffusion.sampler import Diffusion, Sampler
from pdlib.evaluation import metrics
from pdlib.inference.chains import chain_of
from pdlib.kernels import noise
from pdlib.methods import CHAIN, METHODS
from pdlib.networks.noise_level import NoiseLevel
from pdlib.study.comparison import Row
from pdlib.study.members import sampled
from pdlib.study.run import Run, diffusion_of, spread_over
from pdlib.study.trainings import seeded, training
from pdlib.training.fit import fit_network
from pdlib.training.objectives import noise_level_objective

NAME = "noise_level"  # of the training
WATCHED_INDICES = 8  # of the chain, at which a training is validated
READ_INDICES = 10  # at which notebook 18 compares estimators
Estimator = Callable[[Tensor], Tensor]  # [image, x_t] [N, in + 1, H, W] -> alphas_cumprod [N]


def background(x: Tensor) -> Tensor:
    """The closed form as an estimator: it sees the state alone."""
    return levels.background_level(x[:, -1:])


def train_noise_level(run: Run) -> pd.DataFrame:
    """Train the network that estimates levels below T', on diffused references. Returns its history.

    It is chosen by the share of the variance of log(1 - abar) that it explains on diffused references of validation
    subjects.
    """
    settings, row = run.profile.noise_level, Row.of(run, CHAIN, size=1)
    denoiser, t_max = row.first.trained.denoiser, row.chain.t_prime
    diffusion, network = diffusion_of(denoiser), settings.network.arguments()
    indices = spread_over(range(t_max), WATCHED_INDICES)
    card = {"kind": "noise_level", "network": network, "t_max": t_max}
    card |= {"diffusion": denoiser.card["diffusion"], "watched": run.subjects("validation"), "indices": indices}

    def watch(average: nn.Module) -> dict[str, float]:
        found = estimated_levels(run, diffusion, {NAME: average}, indices, presegs=False)
        error, wanted = found.log_noise - found.true_log_noise, found.true_log_noise
        return {"explained": 1 - float((error**2).mean() / wanted.var(ddof=0))}

    how = replace(training(run, NAME, settings.fit, card), select="explained")
    network = seeded(NoiseLevel, run.seed, **network)
    return fit_network(network, noise_level_objective(diffusion, t_max), run.training_slices(), watch, how)


@torch.inference_mode()
def estimated_levels(
    run: Run, diffusion: Diffusion, estimators: Mapping[str, Estimator], indices: Sequence[int], presegs: bool = True
) -> pd.DataFrame:
    """What estimators read off diffused masks of the validation subjects: references, and pre-segmentations as well.

    Both masks of a slice have the same noise. Columns: subject, slice, mask ("reference" or "pre-segmentation"), pixels
    (of the mask), wrong (pixels that are not the reference's), t (the true index), estimator, index (the nearest to the
    estimate), log_noise and true_log_noise (log(1 - abar) as estimated and as it is).
    """
    row, parts = Row.of(run, CHAIN, size=1), []
    for subject in run.subjects("validation"):
        image, window = run.subject(subject).slices()
        masks = {"reference": run.volume(subject).mask == 1}
        if presegs:
            masks["pre-segmentation"] = row.starts(subject).values[0] > 0
        cut = {name: window.cut(mask) for name, mask in masks.items()}
        numbers = torch.from_numpy(window.slices)
        for member, t in enumerate(indices):
            streams = noise.subject_streams(run.seed, subject, numbers, torch.full_like(numbers, member))
            fresh = noise.normal(streams, noise.START, 1, *image.shape[2:])
            for name, mask in cut.items():
                x_start = diffusion.codec.encode(torch.from_numpy(mask).float()[:, None])
                x = torch.cat([image, q_sample(x_start, t, fresh, diffusion.schedule)], dim=1)
                about = {"subject": subject, "slice": window.slices, "mask": name, "t": t}
                about["pixels"] = mask.sum(axis=(1, 2))
                about["wrong"] = (mask != cut["reference"]).sum(axis=(1, 2))
                about["true_log_noise"] = float((1 - diffusion.schedule.abar(t)).log())
                for title, estimator in estimators.items():
                    parts.append(pd.DataFrame(about | _read(run, estimator, x, diffusion) | {"estimator": title}))
    return pd.concat(parts, ignore_index=True)


def _read(run: Run, estimator: Estimator, x: Tensor, diffusion: Diffusion) -> dict[str, np.ndarray]:
    abar = estimator(x.to(run.compute.device).contiguous(memory_format=torch.channels_last)).cpu().double()
    log_noise = (1 - abar).clamp_min(torch.finfo(torch.float32).eps).log()
    return {"index": levels.nearest_index(abar, diffusion.schedule).numpy(), "log_noise": log_noise.numpy()}


def level_errors(found: pd.DataFrame) -> pd.DataFrame:
    """How good estimates are, for each estimator and mask of `estimated_levels`.

    Columns: correlation of log(1 - abar) with the true one, and the index's mean error, mean absolute error and share
    of exact hits.
    """
    table = {}
    for key, rows in found.groupby(["estimator", "mask"], sort=False):
        error = rows["index"] - rows.t
        table[key] = {
            "correlation": rows.log_noise.corr(rows.true_log_noise),
            "mean error": error.mean(),
            "absolute error": error.abs().mean(),
            "exact": (error == 0).mean(),
        }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis(["estimator", "mask"])


def told_apart(found: pd.DataFrame) -> pd.DataFrame:
    """Whether an estimate tells a wrong mask: the pre-segmentation's minus the reference's, under the same noise.

    A row for each estimator: mean and deviation of the difference in index, the correlation of that in log(1 - abar)
    with the number of wrong pixels and with the pixels that the pre-segmentation has more than the reference.
    """
    key, table = ["estimator", "subject", "slice", "t"], {}
    wide = found.set_index([*key, "mask"]).unstack("mask")
    for name, rows in wide.groupby(level="estimator", sort=False):
        guess, reference = (rows.xs(mask, axis=1, level="mask") for mask in ("pre-segmentation", "reference"))
        change = guess.log_noise - reference.log_noise
        table[name] = {
            "mean difference": (guess["index"] - reference["index"]).mean(),
            "deviation": (guess["index"] - reference["index"]).std(ddof=0),
            "correlation with wrong pixels": change.corr(guess.wrong),
            "correlation with added pixels": change.corr(guess.pixels - reference.pixels),
        }
    return pd.DataFrame.from_dict(table, orient="index")


@dataclass(frozen=True)
class LevelledChains:
    """Chains of the row "noise_level" with one estimator or another, and DDIM, which keeps to its plan.

    Args:
        row: PD-DDPM's, whose denoiser and starts they take.
        estimators: by name; None keeps to the plan.
    """

    row: Row
    estimators: Mapping[str, Estimator | None]

    def sampler(self, estimator: str, calls: int, **changes) -> Sampler:
        """A chain of so many calls, ready to be run; changes: of its recipe, such as start="given"."""
        run, denoiser = self.row.run, self.row.first.trained.denoiser
        steps = denoiser.card["diffusion"]["schedule"]["steps"]
        chain = chain_of(METHODS["noise_level"], run.profile.chain, steps, calls=calls)
        reads = self.estimators[estimator]
        chain = replace(chain, rule="ddim" if reads is None else chain.rule, **changes)
        return Sampler(run.denoiser(denoiser), diffusion_of(denoiser), chain, levels=reads)

    def dice(self, calls: Sequence[int], index: int | None = None) -> pd.DataFrame:
        """Dice of one member of each chain for the validation subjects: columns estimator, calls, subject, dice.

        index: diffuse the starts to this index, which no chain is told; None: to T' - 1, where the plan begins.
        """
        run, rows = self.row.run, []
        for subject in run.subjects("validation"):
            start = self.row.starts(subject).values[0]
            given = start if index is None else self._state(subject, start, index)
            changes = {} if index is None else {"start": "given"}
            for n in calls:
                for name in self.estimators:
                    member = sampled(run, self.sampler(name, n, **changes), subject, given)
                    mask = member >= run.profile.ensemble.threshold
                    score = metrics.score_volume(run.labels(subject), mask, run.volume(subject).spacing_mm)["dice"]
                    rows.append({"estimator": name, "calls": n, "subject": subject, "dice": score})
        return pd.DataFrame(rows)

    def _state(self, subject: str, start: np.ndarray, index: int) -> np.ndarray:
        """A pre-segmentation [Z, Y, X] diffused to an index, as the state of a chain."""
        run, diffusion = self.row.run, diffusion_of(self.row.first.trained.denoiser)
        numbers = torch.arange(len(start))
        streams = noise.subject_streams(run.seed, subject, numbers, torch.zeros_like(numbers))
        x_start = diffusion.codec.encode(torch.from_numpy(start)[:, None])
        fresh = noise.normal(streams, noise.START, *x_start.shape[1:])
        return q_sample(x_start, index, fresh, diffusion.schedule)[:, 0].numpy()

    def visited(self, estimator: str, calls: int, subject: str) -> np.ndarray:
        """The indices at which each slice of a subject is denoised, [N, calls]."""
        sampler, seen = self.sampler(estimator, calls), []

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            seen.append(t.cpu())
            return sampler.denoiser(x, t)

        sampled(self.row.run, replace(sampler, denoiser=denoise), subject, self.row.starts(subject).values[0])
        batches = [torch.stack(seen[i : i + calls], dim=1) for i in range(0, len(seen), calls)]
        return torch.cat(batches).numpy()
