"""A row of Table 1 carried out: the registry's entry, a profile's plan and a run's weights make its scores."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pdlib.diffusion.sampler import Chain
from pdlib.diffusion.schedule import scale_t_prime
from pdlib.inference.slices import OnBatch
from pdlib.methods import METHODS, PRESEGMENTER, Method
from pdlib.study.experiment import Denoiser, Run, chain_members, chain_rows, draws, segmenter_rows


@dataclass(frozen=True)
class Plan:
    """How a profile runs the rows: all that they have in common.

    Args:
        presegmenter: the architecture that gives the pre-segmentations.
        deep_ensemble_seeds: seeds of the networks that vote together.
        ensemble_size: members of a stochastic row.
        t_stop: where ADDPM leaves the chain, in the paper's steps.
        paper_steps: T of the paper; its T' and t_stop are scaled from it to the denoiser's own T.
        stride, step, eta, convention: of every chain (see `sampler.Chain`).
    """

    presegmenter: str
    deep_ensemble_seeds: list[int]
    ensemble_size: int
    t_stop: int
    paper_steps: int
    stride: int
    step: str
    eta: float
    convention: str

    def chain(self, method: Method, t_prime: int, steps: int) -> Chain:
        """The chain of a row; t_prime is the paper's, and means nothing to a row that starts from pure noise."""
        count = steps if method.start == "gaussian" else scale_t_prime(t_prime, self.paper_steps, steps)
        how = (count, self.stride, self.step, self.eta, self.convention)
        stop = scale_t_prime(self.t_stop, self.paper_steps, steps) if method.finish == "one_step" else 0
        return Chain(method.start, method.finish, *how, stop)

    def size(self, method: Method) -> int:
        """Members that a row draws from each of its networks."""
        return self.ensemble_size if method.members == "ensemble" else 1

    def sources(self, run: Run, method: Method, t_prime: int) -> list[Path]:
        """The weights that a row begins with: none, one, or one of each seed. A TDPM generator belongs to its T'."""
        if method.source is None:
            return []
        name = self.presegmenter if method.source == PRESEGMENTER else method.source
        seeds = self.deep_ensemble_seeds if method.members == "seeds" else [0]
        suffixes = [f"{t_prime:04d}"] if method.start == "given" else seeds
        return [best(run, f"{name}_{suffix}") for suffix in suffixes]


def best(run: Run, training: str) -> Path:
    """The best weights of a training."""
    return run.place.weights(training) / "best.safetensors"


def method_rows(run: Run, name: str, *, plan: Plan, t_prime: int, split: str, on_batch: OnBatch) -> pd.DataFrame:
    """Scores of one row (a key of `methods.METHODS`) for every subject of a split; t_prime is the paper's.

    ValueError for a name that is no row.
    """
    method = _method(name)
    sources = plan.sources(run, method, t_prime)
    common = {"method": name, "split": split, "ensemble_size": plan.size(method), "on_batch": on_batch}
    if method.start is None:
        return segmenter_rows(run, sources, **common)
    denoiser, chain, last = _chain(run, method, plan, t_prime)
    return chain_rows(run, denoiser, chain, *(sources or [None]), one_step=last, **common)


def method_members(run: Run, name: str, *, plan: Plan, t_prime: int, subject: str, on_batch: OnBatch) -> np.ndarray:
    """The members that one row of Table 1 has for a subject, [E, Z, Y, X] in 0..1; arguments as in `method_rows`."""
    method = _method(name)
    sources, size = plan.sources(run, method, t_prime), plan.size(method)
    if method.start is None:
        return np.concatenate([draws(run, path, subject, size, on_batch).values for path in sources])
    denoiser, chain, last = _chain(run, method, plan, t_prime)
    return chain_members(run, denoiser, chain, *(sources or [None]), subject, size, on_batch, last).values


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {list(METHODS)}")
    return METHODS[name]


def _chain(run: Run, method: Method, plan: Plan, t_prime: int) -> tuple[Denoiser, Chain, Path | None]:
    """A row's denoiser, its chain, and the weights of its last network if it needs one."""
    denoiser = Denoiser.load(run, method.denoiser)
    chain = plan.chain(method, t_prime, denoiser.diffusion.schedule.steps)
    training = f"one_step_{plan.t_stop:04d}{'_mask' if method.mask_only else ''}"
    return denoiser, chain, best(run, training) if chain.t_stop else None
