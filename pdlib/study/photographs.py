"""Photographs with several classes through the same networks and chains, as ensembles, scored as result rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
import yaml
from scipy.special import expit
from torch import nn

from pdlib.data.fundus import CLASSES, Fundus, fundus_phantom, majority_of_others
from pdlib.diffusion.sampler import Chain, Diffusion, Sampler, build_diffusion
from pdlib.evaluation import records
from pdlib.evaluation.metrics import class_dice
from pdlib.inference.slices import OnBatch, Refine, Timed, draw_slices, sample_slices, silent
from pdlib.kernels import noise
from pdlib.kernels.noise import Streams
from pdlib.methods import CHAIN, rule_key
from pdlib.networks.segmenters import segmentation_loss
from pdlib.paths import CONFIGS
from pdlib.study.rows import ensemble_of
from pdlib.study.run import Run
from pdlib.study.trainings import chain_while_training, seeded, training
from pdlib.training.bank import SliceBank
from pdlib.training.fit import fit_network
from pdlib.training.objectives import Objective, diffusion_objective, one_step_objective, segmentation_objective
from pdlib.training.weights import BUILDERS, load_weights

RECIPE = CONFIGS / "phantom_fundus.yaml"


def draw(run: Run, cases: int, size: int) -> list[Fundus]:
    """Synthetic photographs of a run's seed, of size x size pixels."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    return fundus_phantom(cases=cases, size=size, seed=run.seed, parameters=recipe)


@dataclass(frozen=True)
class Eyes:
    """Synthetic photographs, by split."""

    train: Sequence[Fundus]
    validation: Sequence[Fundus]
    test: Sequence[Fundus]

    @classmethod
    def of(cls, run: Run) -> "Eyes":
        """Those of the profile's section `fundus`."""
        fundus = run.profile.fundus
        eyes = draw(run, fundus.cases, fundus.size)
        held = fundus.held_out
        return cls(eyes[: -2 * held], eyes[-2 * held : -held], eyes[-held:])


@dataclass(frozen=True)
class EyeNetworks:
    """Networks of photographs, trained or in training: the segmenter, the denoiser and ADDPM's last one."""

    diffusion: Diffusion
    segmenter: nn.Module | None = None
    denoiser: nn.Module | None = None
    refine: nn.Module | None = None

    def sampler(self, run: Run, chain: Chain) -> Sampler:
        """A chain with these networks."""
        denoiser = run.prepare(self.denoiser, self.diffusion.schedule.steps)
        refine = Refine(self.refine, chain.t_stop, mask_only=False) if chain.t_stop else None
        return Sampler(denoiser, self.diffusion, chain, refine)


def eye_chains(run: Run) -> dict[str, Chain | None]:
    """The chains that photographs are put through, by row; None: the segmenter by itself."""
    stride = run.profile.truncation.stride
    named = ("ddpm", CHAIN, "addpm")
    chains = {name: chain_while_training(run, name, run.profile.denoiser, stride=stride) for name in named}
    return {"attention_unet": None, **chains}


def train_eyes(run: Run, eyes: Eyes) -> EyeNetworks:
    """Train segmenter, denoiser and last network on the photographs, one after another, each watched by its Dice."""
    fundus, chains = run.profile.fundus, eye_chains(run)
    networks = EyeNetworks(build_diffusion(**run.profile.denoiser.diffusion.arguments()))
    diffusion, unet = networks.diffusion, {"name": "attention_unet"}
    loss = segmentation_loss(fundus.objective.loss, **fundus.objective.arguments("name", "loss"))
    last = one_step_objective(diffusion, chains["addpm"].t_stop, False, loss)
    noisy = diffusion_objective(diffusion, diffusion.schedule.steps)
    bank = SliceBank(
        [torch.from_numpy(eye.image) for eye in eyes.train],  # [3, H, W] each
        [torch.from_numpy(eye.reference).float() for eye in eyes.train],  # [2, H, W] each
    )
    for kind, network, objective, chain in (
        ("segmenter", unet | fundus.segmenter.arguments(), segmentation_objective(loss), None),
        ("denoiser", fundus.denoiser.arguments(), noisy, chains["ddpm"]),
        ("refine", unet | fundus.refine.arguments(), last, chains["addpm"]),
    ):
        watch = partial(_watched_dice, run, networks, eyes, chain, kind)
        trained = _train(run, bank, kind, network, objective, watch)
        networks = replace(networks, **{kind: trained})
    return networks


def _train(
    run: Run, bank: SliceBank, kind: str, network: dict, objective: Objective, watch: Callable[[nn.Module], dict]
) -> nn.Module:
    fundus = run.profile.fundus
    card = {"kind": "one_step" if kind == "refine" else kind, "network": network, "fundus": fundus.arguments()}
    how = training(run, f"fundus_{kind}", fundus.fit, card)
    fit_network(seeded(BUILDERS[card["kind"]], run.seed, **network), objective, bank, watch, how)
    return run.network(load_weights(how.best), card["kind"])


def _watched_dice(
    run: Run, networks: EyeNetworks, eyes: Eyes, chain: Chain | None, kind: str, average: nn.Module
) -> dict[str, float]:
    return photograph_dice(run, replace(networks, **{kind: average}), eyes.validation, chain)


def test_members(
    run: Run, networks: EyeNetworks, eyes: Eyes, chains: Mapping[str, Chain | None], on_batch: OnBatch
) -> dict[str, Timed]:
    """Members of the test photographs, by row."""
    size = run.profile.truncation.ensemble_size
    return {name: photograph_members(run, networks, eyes.test, chain, size, on_batch) for name, chain in chains.items()}


def write_scores(run: Run, eyes: Eyes, drawn: Mapping[str, Timed], chains: Mapping[str, Chain | None]) -> pd.DataFrame:
    """Write the scores of rows and raters, stamped as those of the photographs' phantom."""
    parts = [photograph_rows(run, eyes.test, one, name, chains[name]) for name, one in drawn.items()]
    parts.append(rater_rows(run, eyes.test, method="rater"))
    made = {"phantom": True, "data_fingerprint": records.data_fingerprint([RECIPE])}
    path = run.place.results / "fundus_scores.csv"
    return records.write_table(path, pd.concat(parts, ignore_index=True), run.stamp() | made)


def blind_dice(eyes: Eyes) -> np.ndarray:
    """Mean Dice of each class [C] of one answer, whatever the image: where most training references agree."""
    truth = np.stack([eye.reference for eye in eyes.test])  # [N, C, H, W]
    usual = np.stack([eye.reference for eye in eyes.train]).mean(axis=0) > 0.5
    return class_dice(usual, truth).mean(axis=0)


def photograph_members(
    run: Run,
    networks: EyeNetworks,
    eyes: Sequence[Fundus],
    chain: Chain | None,
    size: int,
    on_batch: OnBatch = silent,
) -> Timed:
    """Ensemble members of a chain, [E, N, C, H, W] in 0..1, or without a chain the segmenter's answer, [1, N, C, H, W].

    The cost is that of all members and what they start from; a photograph's seconds are its share.
    """
    image = torch.from_numpy(np.stack([eye.image for eye in eyes]))  # [N, 3, H, W]
    keys = torch.tensor([noise.stream_key(run.seed, eye.subject) for eye in eyes])
    member, key = torch.meshgrid(torch.arange(size), keys, indexing="ij")
    streams = Streams(key, torch.zeros_like(key), member)  # [E, N]; a photograph is its subject's slice 0
    begun = Timed(np.zeros((1, len(eyes), len(CLASSES), *image.shape[2:]), np.float32), 0, 0.0)
    if chain is None or chain.start == "preseg":
        begun = draw_slices(networks.segmenter, image, streams[0], run.compute, on_batch)
        begun = Timed(expit(begun.values)[None], begun.calls, begun.seconds / len(eyes))
    if chain is None:
        return begun
    start = torch.from_numpy(begun.values >= run.profile.ensemble.threshold).float()
    drawn = sample_slices(networks.sampler(run, chain), image, start, streams, run.compute, on_batch)
    calls = begun.calls + size * drawn.calls
    return replace(drawn, calls=calls, seconds=begun.seconds + drawn.seconds / len(eyes))


def photograph_dice(run: Run, networks: EyeNetworks, eyes: Sequence[Fundus], chain: Chain | None) -> dict[str, float]:
    """Mean Dice of one member over photographs and classes, for the training curves of the networks."""
    member = photograph_members(run, networks, eyes, chain, 1).values[0]
    references = np.stack([eye.reference for eye in eyes])  # [N, C, H, W]
    return {"dice": float(class_dice(member >= run.profile.ensemble.threshold, references).mean())}


def photograph_rows(run: Run, eyes: Sequence[Fundus], drawn: Timed, method: str, chain: Chain | None) -> pd.DataFrame:
    """Dice of each class with the majority of all raters but one, the mean over the one left out, as rows of test
    photographs: methods and raters meet the same references.

    drawn: what `photograph_members` made of them with this chain, and its cost.
    """
    about = {"method": method, "seed": run.seed, "nfe": drawn.calls, "seconds": drawn.seconds}
    about["ensemble_size"] = len(drawn.values)
    if chain is not None:
        about |= {"t_prime": chain.t_prime, "t_stop": chain.t_stop or None, "calls": len(chain.indices)}
        about |= {"rule": rule_key(chain.rule, chain.eta, chain.finish)}
        about |= {"start": "best" if chain.start == "preseg" else "noise"}
    mask = ensemble_of(run, drawn.values).mask
    return _rows(run, eyes, class_dice(mask, majority_of_others(_raters(eyes))).mean(axis=0), **about)


def rater_rows(run: Run, eyes: Sequence[Fundus], method: str) -> pd.DataFrame:
    """Dice of each class between a rater and the majority of the others, the mean over raters, as result rows."""
    raters = _raters(eyes)
    dice = class_dice(raters, majority_of_others(raters))  # [R, N, C]
    return _rows(run, eyes, dice.mean(axis=0), method=method, seed=run.seed, nfe=0)


def _raters(eyes: Sequence[Fundus]) -> np.ndarray:
    return np.stack([eye.raters for eye in eyes], axis=1)  # [R, N, C, H, W]


def _rows(run: Run, eyes: Sequence[Fundus], dice: np.ndarray, **about) -> pd.DataFrame:
    """Rows of the test photographs. dice [N, C]"""
    names = [f"dice_{name}" for name in CLASSES]
    about |= {"fold": run.fold, "site": "phantom", "split": "test"}
    rows = [
        records.score_rows(dict(zip(names, values, strict=True)), subject=eye.subject, **about)
        for eye, values in zip(eyes, dice.tolist(), strict=True)
    ]
    return pd.concat(rows, ignore_index=True)
