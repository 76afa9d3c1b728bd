"""Draws of segmenters and generators, what chains start from, and the members that chains end in; all cached."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from pdlib.diffusion.sampler import Chain, Sampler
from pdlib.inference.slices import OnBatch, Refine, Timed, silent
from pdlib.inference.volumes import draw_member, sample_members
from pdlib.networks.gan import ConditionalGan
from pdlib.study.cache import Drawn, first_members
from pdlib.study.run import Run, diffusion_of
from pdlib.training.weights import Weights

SOURCES = ("segmenter", "generator")


def draws(run: Run, weights: Weights, subject: str, count: int, on_batch: OnBatch = silent) -> Drawn:
    """The first count draws of a trained segmenter or generator; a deterministic one has a single one, whatever count.

    A segmenter's are lesion probabilities, a generator's states of the chain. Cached beside the samples.
    """
    network = run.network(weights, *SOURCES)
    recipe = _recipe(run, subject, weights=weights.digest, seed=run.seed if network.stochastic else None)

    def draw(members: range) -> Timed:
        drawn = (draw_member(network, run.subject(subject), member, run.compute, on_batch) for member in members)
        return _stacked([replace(one, values=one.values[None]) for one in drawn])

    folder = run.place.presegs(_name(weights))
    return first_members(folder, recipe, count if network.stochastic else 1, draw)


def starts(run: Run, source: Weights | None, subject: str, count: int) -> Drawn:
    """What the first count members of a chain start from; [1, Z, Y, X] where it is the same for all of them.

    An empty mask (source None), the hard mask of a segmenter, that of each draw of a stochastic one, or the states of a
    generator.
    """
    if source is None:
        return Drawn(np.zeros((1, *run.volume(subject).brain.shape), np.float32), 0, 0.0)
    drawn = draws(run, source, subject, count)
    if isinstance(run.network(source, *SOURCES), ConditionalGan):
        return drawn
    return replace(drawn, values=(drawn.values >= run.profile.ensemble.threshold).astype(np.float32))


@dataclass(frozen=True)
class TrainedChain:
    """A chain with the trained networks that it takes.

    Args:
        chain: the recipe.
        denoiser: weights of its network.
        refine: weights of the network that goes on where it stops, if it stops before the end.
        levels: of the network that reads the noise level off its states, if the rule asks one.
        autoencoder: of the masks' auto-encoder, if its states are that one's codes.

    ValueError where the networks were trained for another chain.
    """

    chain: Chain
    denoiser: Weights
    refine: Weights | None = None
    levels: Weights | None = None
    autoencoder: Weights | None = None

    def __post_init__(self) -> None:
        t_max = self.denoiser.card["t_max"]
        if self.chain.t_prime > t_max:
            raise ValueError(f"{self.denoiser.path}: trained on {t_max} steps, and T' is {self.chain.t_prime}")
        if (only := self.denoiser.card.get("t_start")) not in (None, self.chain.t_prime - 1):
            path, t_prime = self.denoiser.path, self.chain.t_prime
            raise ValueError(f"{path}: trained from T' = {only + 1} alone, and T' is {t_prime}")
        if self.refine is not None and self.refine.card["t_stop"] != self.chain.t_stop:
            raise ValueError(
                f"{self.refine.path}: trained for t_stop {self.refine.card['t_stop']}, "
                f"and the chain stops at {self.chain.t_stop}"
            )
        if self.levels is not None and self.chain.t_prime > self.levels.card["t_max"]:
            raise ValueError(
                f"{self.levels.path}: trained on {self.levels.card['t_max']} steps, and T' is {self.chain.t_prime}"
            )
        if self.autoencoder is not None and self.denoiser.card["autoencoder"] != self.autoencoder.digest:
            raise ValueError(f"{self.denoiser.path}: trained in the codes of another auto-encoder")

    @property
    def networks(self) -> dict[str, Weights]:
        """The networks that there are, by their part in the chain."""
        parts = ("denoiser", "refine", "levels", "autoencoder")
        return {part: getattr(self, part) for part in parts if getattr(self, part) is not None}

    def sampler(self, run: Run) -> Sampler:
        """The chain, ready to be run on this run's device."""
        refine = levels = None
        if self.refine is not None:
            card = self.refine.card
            refine = Refine(run.network(self.refine, "one_step"), card["t_stop"], card.get("mask_only", False))
        if self.levels is not None:
            levels = run.network(self.levels, "noise_level")
        diffusion = diffusion_of(self.denoiser, self.autoencoder, run.compute.device)
        return Sampler(run.denoiser(self.denoiser), diffusion, self.chain, refine, levels)


def chain_members(
    run: Run, trained: TrainedChain, source: Weights | None, subject: str, count: int, on_batch: OnBatch = silent
) -> Drawn:
    """The first count members of a chain for a subject, [E, Z, Y, X]; only those not sampled before are sampled.

    source is what it starts from (see `starts`). The cost is the chain's, that of its start left out.
    """
    networks = {part: weights.digest for part, weights in trained.networks.items()}
    source_digest = source and source.digest
    recipe = _recipe(run, subject, chain=asdict(trained.chain), source=source_digest, seed=run.seed, **networks)
    sampler = trained.sampler(run)

    def draw(members: range) -> Timed:
        begun = starts(run, source, subject, members.stop).values
        # On a CPU one member at a time: its floats then do not depend on how many are asked for.
        one_by_one = [range(member, member + 1) for member in members]
        groups = [members] if run.compute.device.type == "cuda" else one_by_one
        return _stacked(
            [
                sample_members(
                    sampler,
                    run.subject(subject),
                    begun if len(begun) == 1 else begun[group.start : group.stop],
                    group,
                    run.compute,
                    on_batch,
                )
                for group in groups
            ]
        )

    return first_members(run.place.samples(_chain_name(trained), _source_name(source)), recipe, count, draw)


def sampled(run: Run, sampler: Sampler, subject: str, start: np.ndarray | None) -> np.ndarray:
    """One member of a chain from a start [Z, Y, X] (None: nothing), [Z, Y, X], not cached: for networks in training."""
    begun = np.zeros(run.volume(subject).brain.shape, np.float32) if start is None else start
    return sample_members(sampler, run.subject(subject), begun[None], range(1), run.compute, silent).values[0]


def drawn_once(run: Run, network: Callable, subject: str) -> np.ndarray:
    """The first draw of a network as it stands, [Z, Y, X], not cached: for networks in training."""
    return draw_member(network, run.subject(subject), 0, run.compute, silent).values


def _stacked(parts: list[Timed]) -> Timed:
    """Members side by side, with the calls of one and its mean seconds."""
    values = np.concatenate([part.values for part in parts])
    seconds = sum(part.seconds for part in parts) / len(values)
    return Timed(values, parts[0].calls, seconds)


def _recipe(run: Run, subject: str, **parts) -> dict:
    machine = {"precision": run.compute.precision, "multiple": run.profile.data.multiple}
    about = {"subject": subject, "data": run.data["fingerprint"], "threshold": run.profile.ensemble.threshold}
    return {**parts, **about, **machine}


def _name(weights: Weights) -> str:
    return f"{weights.path.parent.name}-{weights.path.stem}"


def _source_name(source: Weights | None) -> str:
    return "empty" if source is None else _name(source)


def _chain_name(trained: TrainedChain) -> str:
    """A folder for a chain, another for every other one."""
    chain = trained.chain
    networks = [_name(one) for one in trained.networks.values()]
    parts = (chain.start, chain.finish, chain.rule, f"{chain.eta:g}", chain.convention, chain.spacing)
    numbers = (chain.t_prime, chain.t_stop, chain.calls)
    return "_".join([*networks, *parts, *(f"{number:04d}" for number in numbers)])
