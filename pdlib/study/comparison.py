"""A row of Table 1 made ready: the registry's entry and a profile's settings, with the networks of a run."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pdlib.diffusion.sampler import Chain
from pdlib.inference.chains import chain_of, settings_of
from pdlib.inference.slices import OnBatch, silent
from pdlib.methods import METHODS, PRESEGMENTER, Method, rule_key
from pdlib.study.cache import Drawn
from pdlib.study.members import TrainedChain, chain_members, draws, starts
from pdlib.study.rows import members_rows
from pdlib.study.run import Run
from pdlib.training.weights import Weights


@dataclass(frozen=True)
class Row:
    """A row of Table 1.

    Args:
        run: whose networks it takes.
        name: a key of METHODS.
        sources: the weights that it begins with: none, one, or one of each seed.
        trained: its chain with its networks; None for a segmenter by itself.
        size: members that it draws from each of its sources.
        start: what its chain starts from, as the tables name it.
    """

    run: Run
    name: str
    sources: tuple[Weights, ...]
    trained: TrainedChain | None
    size: int
    start: str = ""

    @classmethod
    def of(cls, run: Run, name: str, size: int | None = None, **changes) -> "Row":
        """The row called name, as the profile has it.

        changes: of its chain's settings, such as t_prime=500 (in the paper's steps), rule="ddim", eta=0.0, calls=10;
        size: members of a stochastic row. ValueError for a name that is no row.
        """
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}: choose one of {list(METHODS)}")
        method = METHODS[name]
        settings = settings_of(method, run.profile.chain, **changes)
        size = (size or run.profile.ensemble.size) if method.members == "ensemble" else 1
        sources = _sources(run, method, settings.t_prime)
        if method.start is None:
            return cls(run, name, sources, None, size)
        denoiser = run.weights(method.denoiser)
        chain = chain_of(method, run.profile.chain, denoiser.card["diffusion"]["schedule"]["steps"], **changes)
        refine = run.weights(refine_name(settings.t_stop, method.mask_only)) if chain.t_stop else None
        start = "noise" if method.start == "gaussian" else "best"
        return cls(run, name, sources, TrainedChain(chain, denoiser, refine), size, start)

    def starting_from(self, source: Weights | None, start: str) -> "Row":
        """The same row from another pre-segmentation (None: an empty one), and what the tables call that."""
        return replace(self, sources=() if source is None else (source,), start=start)

    @property
    def chain(self) -> Chain:
        """Its chain; ValueError for a segmenter by itself."""
        if self.trained is None:
            raise ValueError(f"{METHODS[self.name].title}: a row without a chain")
        return self.trained.chain

    @property
    def source(self) -> Weights | None:
        """What its chain starts from; None: nothing."""
        return self.sources[0] if self.sources else None

    def members(self, subject: str, on_batch: OnBatch = silent, count: int | None = None) -> Drawn:
        """Its members for a subject, [E, Z, Y, X] in 0..1, or the first count; the cost leaves out a chain's start."""
        count = count or self.size
        if self.trained is not None:
            return chain_members(self.run, self.trained, self.source, subject, count, on_batch)
        parts = [draws(self.run, weights, subject, count, on_batch) for weights in self.sources]
        calls, seconds = sum(part.calls for part in parts), sum(part.seconds for part in parts)
        return Drawn(np.concatenate([part.values for part in parts]), calls, seconds)

    def starts(self, subject: str, count: int | None = None) -> Drawn:
        """What its chain starts from, [1 or E, Z, Y, X], with the cost."""
        return starts(self.run, self.source, subject, count or self.size)

    def scores(self, split: str, on_batch: OnBatch = silent) -> pd.DataFrame:
        """Its scores for every subject of a split, as result rows; the cost counts all members and their starts."""
        rows = []
        for subject in self.run.subjects(split):
            members = self.members(subject, on_batch)
            before = self.starts(subject) if self.trained else Drawn(members.values[:0], 0, 0.0)
            cost = {"nfe": before.calls + members.calls, "seconds": before.seconds + members.seconds}
            rows.append(members_rows(self.run, members.values, subject, split=split, **self.about, **cost))
        return pd.concat(rows, ignore_index=True)

    @property
    def about(self) -> dict:
        """The columns that tell this row's scores from another's."""
        if self.trained is None:
            return {"method": self.name, "start": self.start}
        chain = self.chain
        return {
            "method": self.name,
            "start": self.start,
            "rule": rule_key(chain.rule, chain.eta, chain.finish),
            "calls": len(chain.indices),
            "t_prime": chain.t_prime,
            "t_stop": chain.t_stop or None,
        }

    @property
    def key(self) -> dict:
        """The columns that its chain fills, for the tables: what selects this row's scores and no other's."""
        return {column: value for column, value in self.about.items() if value not in (None, "")}

    def selection(self, *columns: str) -> dict:
        """Those of the columns of `key` that tell it from the other rows of a table; what its title there names."""
        return {column: self.key[column] for column in columns if column in self.key}

    def jump(self) -> "Row":
        """The same start, left by the jump to x_start after a single call."""
        chain = replace(self.chain, finish="x0_jump", calls=1)
        return replace(self, trained=replace(self.trained, chain=chain))

    def calls_per_member(self) -> int:
        """Network calls on a slice that a member costs, its start left out: what a progress bar counts."""
        return len(self.chain.indices) + (self.trained.refine is not None) if self.trained else 1


def scores_of(rows: Iterable[Row], split: str, on_batch: OnBatch = silent) -> pd.DataFrame:
    """Scores of several rows for every subject of a split."""
    return pd.concat([row.scores(split, on_batch) for row in rows], ignore_index=True)


def refine_name(t_stop: int, mask_only: bool) -> str:
    """The training of ADDPM's last network for a t_stop of the paper."""
    return f"one_step_{t_stop:04d}{'_mask' if mask_only else ''}"


def tdpm_name(t_prime: int) -> str:
    """The training of TDPM's generator for a T' of the paper."""
    return f"tdpm_{t_prime:04d}"


def _sources(run: Run, method: Method, t_prime: int) -> tuple[Weights, ...]:
    if method.source is None:
        return ()
    if method.start == "given":
        return (run.weights(tdpm_name(t_prime)),)
    name = run.profile.comparison.presegmenter if method.source == PRESEGMENTER else method.source
    seeds = run.profile.comparison.deep_ensemble_seeds if method.members == "seeds" else (0,)
    return tuple(run.weights(f"{name}_{seed}") for seed in seeds)
