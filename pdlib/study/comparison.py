"""A row of Table 1 made ready: the registry's entry and a profile's settings, with the networks of a run."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd

from pdlib.diffusion.sampler import Chain
from pdlib.inference.chains import chain_of, settings_of
from pdlib.inference.slices import OnBatch, silent
from pdlib.methods import (
    METHODS,
    PRESEGMENTER,
    Method,
    refine_name,
    rule_key,
    seeded_name,
    student_name,
    tdpm_name,
)
from pdlib.study.cache import Drawn
from pdlib.study.members import TrainedChain, chain_members, draws, starts
from pdlib.study.rows import members_rows
from pdlib.study.run import Run
from pdlib.training.weights import Weights


@dataclass(frozen=True)
class Networks:
    """What a row takes in one repeat of the study.

    Args:
        sources: the weights that it begins with: none, one, or one of each seed of an ensemble.
        trained: its chain with its networks; None for a segmenter by itself.
    """

    sources: tuple[Weights, ...]
    trained: TrainedChain | None = None

    @property
    def source(self) -> Weights | None:
        """What its chain starts from; None: nothing."""
        return self.sources[0] if self.sources else None


@dataclass(frozen=True)
class Row:
    """A row of Table 1.

    Args:
        run: whose networks it takes.
        name: a key of METHODS.
        size: members that it draws from each of its sources.
        in_repeat: its networks by the seed of the repeat; a subject is segmented by those of `run.seed_of` it.
        start: what its chain starts from, as the tables name it.
    """

    run: Run
    name: str
    size: int
    in_repeat: Callable[[int], Networks]
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
        size = (size or run.profile.ensemble.size) if method.members == "ensemble" else 1
        start = {None: "", "gaussian": "noise"}.get(method.start, "best")
        row = cls(run, name, size, cache(lambda seed: _networks(run, method, seed, changes)), start)
        _ = row.first  # what cannot be had is said now
        return row

    @classmethod
    def alone(cls, run: Run, name: str, weights: Weights) -> "Row":
        """A segmenter by itself, whatever its seed, with one member."""
        return cls(run, name, 1, lambda seed: Networks((weights,)))

    def starting_from(self, sources: Mapping[int, Weights] | None, start: str) -> "Row":
        """The same row from other pre-segmentations, by the seed of the repeat (None: empty ones), and what the tables
        call these.
        """

        def in_repeat(seed: int) -> Networks:
            return replace(self.in_repeat(seed), sources=() if sources is None else (sources[seed],))

        return replace(self, in_repeat=in_repeat, start=start)

    def of_repeat(self, seed: int) -> "Row":
        """The same row with one repeat's networks, whatever the subject."""
        return replace(self, in_repeat=lambda _: self.in_repeat(seed))

    @property
    def first(self) -> Networks:
        """The networks of the first repeat: they stand for all where nothing is scored."""
        return self.in_repeat(self.run.profile.repeats.seeds[0])

    def networks(self, subject: str) -> Networks:
        """The networks that segment a subject."""
        return self.in_repeat(self.run.seed_of(subject))

    @property
    def chain(self) -> Chain:
        """Its chain; ValueError for a segmenter by itself."""
        if self.first.trained is None:
            raise ValueError(f"{METHODS[self.name].title}: a row without a chain")
        return self.first.trained.chain

    def members(self, subject: str, on_batch: OnBatch = silent, count: int | None = None) -> Drawn:
        """Its members for a subject, [E, Z, Y, X] in 0..1, or the first count; the cost leaves out a chain's start."""
        count, mine = count or self.size, self.networks(subject)
        if mine.trained is not None:
            return chain_members(self.run, mine.trained, mine.source, subject, count, on_batch)
        parts = [draws(self.run, weights, subject, count, on_batch) for weights in mine.sources]
        calls, seconds = sum(part.calls for part in parts), sum(part.seconds for part in parts)
        return Drawn(np.concatenate([part.values for part in parts]), calls, seconds)

    def starts(self, subject: str, count: int | None = None) -> Drawn:
        """What its chain starts from, [1 or E, Z, Y, X], with the cost."""
        return starts(self.run, self.networks(subject).source, subject, count or self.size)

    def scores(self, split: str, on_batch: OnBatch = silent) -> pd.DataFrame:
        """Its scores for every subject of a split, as result rows; the cost counts all members and their starts.

        The split "tested" is the test subjects that this row is tested on (`Run.tested`).
        """
        rows, name = [], "test" if split == "tested" else split
        for subject in self.run.tested(self.name) if split == "tested" else self.run.subjects(split):
            members = self.members(subject, on_batch)
            before = self.starts(subject) if self.first.trained else Drawn(members.values[:0], 0, 0.0)
            cost = {"nfe": before.calls + members.calls, "seconds": before.seconds + members.seconds}
            rows.append(members_rows(self.run, members.values, subject, split=name, **cost, **self.about))
        return pd.concat(rows, ignore_index=True)

    def start_scores(self, split: str, method: str) -> pd.DataFrame:
        """Scores of what its chain starts from, by itself, under a method's name."""
        rows = []
        for subject in self.run.subjects(split):
            begun = self.starts(subject, 1)
            about = {"method": method, "start": self.start, "nfe": begun.calls, "seconds": begun.seconds}
            rows.append(members_rows(self.run, begun.values, subject, split=split, **about))
        return pd.concat(rows, ignore_index=True)

    @property
    def about(self) -> dict:
        """The columns that tell this row's scores from another's."""
        if self.first.trained is None:
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

        def in_repeat(seed: int) -> Networks:
            mine = self.in_repeat(seed)
            return replace(mine, trained=replace(mine.trained, chain=chain))

        return replace(self, in_repeat=in_repeat)

    def calls_per_member(self) -> int:
        """Network calls on a slice that a member costs, its start left out: what a progress bar counts."""
        trained = self.first.trained
        if trained is None:
            return 1
        calls = len(trained.chain.indices)
        beside = calls if trained.levels is not None else 0  # a level is estimated before each call
        beside += 2 if trained.autoencoder is not None else 0  # encoder and decoder
        return calls + beside + (trained.refine is not None)


def scores_of(rows: Iterable[Row], split: str, on_batch: OnBatch = silent) -> pd.DataFrame:
    """Scores of several rows for every subject of a split."""
    return pd.concat([row.scores(split, on_batch) for row in rows], ignore_index=True)


def _networks(run: Run, method: Method, seed: int, changes: Mapping) -> Networks:
    """The networks of a row in one repeat."""
    settings = settings_of(method, run.profile.chain, **changes)
    sources = _sources(run, method, settings.t_prime, seed)
    if method.start is None:
        return Networks(sources)
    name = seeded_name(method.denoiser, seed)
    if method.denoiser == "student":
        name = student_name(settings.calls, run.profile.distillation.calls)
    denoiser = run.weights(name)
    chain = chain_of(method, run.profile.chain, denoiser.card["diffusion"]["schedule"]["steps"], **changes)
    further = {}
    if chain.t_stop:
        last = refine_name(settings.t_stop, method.mask_only) if method.last == "refine" else method.last
        further["refine"] = run.weights(last)
    if chain.rule == "noise_level":
        further["levels"] = run.weights("noise_level")
    if denoiser.card["diffusion"]["codec"] == "latent":
        further["autoencoder"] = run.weights("autoencoder")
    return Networks(sources, TrainedChain(chain, denoiser, **further))


def _sources(run: Run, method: Method, t_prime: int, seed: int) -> tuple[Weights, ...]:
    if method.source is None:
        return ()
    if method.start == "given":
        return (run.weights(tdpm_name(t_prime)),)
    name = run.profile.comparison.presegmenter if method.source == PRESEGMENTER else method.source
    if method.members == "seeds":
        return tuple(run.weights(f"{name}_{one}") for one in run.profile.comparison.deep_ensemble_seeds)
    own = seed if name == run.profile.comparison.presegmenter else 0
    return (run.weights(f"{name}_{own}"),)
