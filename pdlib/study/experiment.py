"""What the notebooks call: a profile's cases, networks, and scores of segmenters and chains, cached by recipe.

Every cache is keyed by a recipe (weights, chain, seed, data), so a rerun does only what is missing or has changed, and
a killed run goes on at the subject it had reached.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from pdlib.data import folds as splits
from pdlib.data import wmh
from pdlib.diffusion.sampler import Chain, Diffusion
from pdlib.evaluation import agreement, metrics, records
from pdlib.inference import volumes as inference
from pdlib.inference.slices import OnBatch, OneStep, Timed
from pdlib.kernels import noise, ops
from pdlib.networks.generators import ConditionalGan
from pdlib.networks.guided_unet import PreparedDenoiser
from pdlib.paths import ROOT, Layout
from pdlib.training.fit import SliceBank


@dataclass(frozen=True)
class Run:
    """One fold of one profile: where things lie, which cases it has, and how networks are run on them.

    Args:
        place: the folders, those of the test fold.
        seed: of the chains' noise.
        batch_size, precision: of inference.
        multiple: slices are padded to a multiple of this.
        threshold, vote: how members become a mask.
    """

    place: Layout
    seed: int
    batch_size: int
    precision: str
    multiple: int
    threshold: float
    vote: str

    @property
    def fold(self) -> int:
        """The test fold."""
        return self.place.fold

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def autocast(self) -> str:
        """The precision with "auto" resolved for this device; a CPU's was measured once, for all jobs of the run."""
        if self.precision != "auto":
            return self.precision
        return self.data["cpu_precision"] if self.device.type == "cpu" else inference.fast_precision(self.device)

    @property
    def data(self) -> dict:
        """What the first notebook recorded: root, fingerprint, clip_percentiles, phantom (bool), cpu_precision."""
        return json.loads(self.place.cases.read_text(encoding="utf-8"))

    def subjects(self, split: str) -> list[str]:
        """Subjects of "train", "validation" or "test"."""
        return splits.split_subjects(self._folds, test_fold=self.fold)[split]

    def spread(self, split: str, count: int) -> list[str]:
        """A few subjects of a split, spread over its order and so over the sites; all of them where it has no more."""
        subjects = self.subjects(split)
        places = np.linspace(0, len(subjects) - 1, min(count, len(subjects))).round().astype(int)
        return [subjects[i] for i in places]

    def site(self, subject: str) -> str:
        """The site of a subject."""
        return self._folds.set_index("subject")["site"][subject]

    @cached_property
    def _folds(self) -> pd.DataFrame:
        return records.read_table(self.place.folds)

    def volume(self, subject: str) -> wmh.Volume:
        """A case, read and normalised (kept in memory)."""
        return _read_case(self.data["root"], subject, tuple(self.data["clip_percentiles"]))

    def raters(self, subject: str) -> dict[str, np.ndarray]:
        """Further raters' labels of a subject, [Z, Y, X] each, by the observer's name; none where there are none."""
        case = _find_case(self.data["root"], subject)
        return wmh.read_raters(self.data["root"], case, self.volume(subject).grid)

    def prepare(self, network: nn.Module, t_max: int) -> PreparedDenoiser:
        """A denoiser as it stands now, ready to be sampled with from any index below t_max."""
        return PreparedDenoiser(network, t_max, self.autocast)

    def stamp(self) -> dict:
        """The provenance of a table that this run writes."""
        return records.stamp(
            root=ROOT,
            device=torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            seed=self.seed,
            data_fingerprint=self.data["fingerprint"],
            phantom=self.data["phantom"],
            profile=self.place.profile,
        )

    def training_slices(self) -> SliceBank:
        """All brain slices of the training subjects."""
        images, masks = [], []
        for subject in self.subjects("train"):
            volume = self.volume(subject)
            image, window = inference.brain_slices(volume, 1)
            images += list(image)
            masks += list(torch.from_numpy(window.cut(volume.mask)).float()[:, None])
        return SliceBank(images, masks)

    def grid_card(self) -> dict:
        """What a network's card says of its data: which they were, and what `segment` needs to make others alike."""
        spacings = np.array([self.volume(subject).spacing_mm[1:] for subject in self.subjects("train")])
        return {
            "fingerprint": self.data["fingerprint"],
            "phantom": self.data["phantom"],
            "train": self.subjects("train"),
            "validation": self.subjects("validation"),
            "precision": self.autocast,
            "clip_percentiles": self.data["clip_percentiles"],
            "multiple": self.multiple,
            "in_plane_mm": {
                "low": spacings.min(axis=0).tolist(),
                "median": np.median(spacings, axis=0).tolist(),
                "high": spacings.max(axis=0).tolist(),
            },
        }


@cache
def _read_case(root: str, subject: str, clip_percentiles: tuple[float, float]) -> wmh.Volume:
    return wmh.read_case(_find_case(root, subject), clip_percentiles=clip_percentiles)


def _find_case(root: str, subject: str) -> wmh.Case:
    return next(case for case in wmh.find_cases(root) if case.subject == subject)


def labels(volume: wmh.Volume) -> np.ndarray:
    """The reference [Z, Y, X] with 1 = lesion, 2 = other pathology."""
    return volume.mask + 2 * volume.ignore.astype(np.uint8)


def segmenter_dice(run: Run, network: nn.Module) -> dict[str, float]:
    """Mean volume Dice of a segmenter on the validation subjects, for its training curve."""
    predict = [draw_once(run, network, subject, 0, silent).values for subject in run.subjects("validation")]
    return {"dice": _mean_dice(run, run.subjects("validation"), [p >= run.threshold for p in predict])}


def sampled_dice(
    run: Run,
    denoise: PreparedDenoiser,
    diffusion: Diffusion,
    chain: Chain,
    subjects: list[str],
    starts: Callable[[str], np.ndarray] | None = None,
    one_step: OneStep | None = None,
) -> dict[str, float]:
    """Mean volume Dice of one sampled member a subject, for the training curves of the networks that a chain uses.

    starts gives what the chain of a subject starts from, [Z, Y, X]; without it the chain starts from nothing.
    """
    masks = []
    for subject in subjects:
        start = np.zeros(run.volume(subject).brain.shape) if starts is None else starts(subject)
        member = _members(run, denoise, diffusion, chain, one_step, subject, start[None], range(1), silent)
        masks.append(member.values[0] >= run.threshold)
    return {"dice": _mean_dice(run, subjects, masks)}


def silent(images: int) -> None:
    """Show no progress."""


def _mean_dice(run: Run, subjects: list[str], masks: Iterable[np.ndarray]) -> float:
    scores = []
    for subject, mask in zip(subjects, masks, strict=True):
        volume = run.volume(subject)
        scores.append(metrics.score_volume(labels(volume), mask, volume.spacing_mm)["dice"])
    return float(np.nanmean(scores))  # a subject without lesion and without prediction has no Dice


def draw_once(run: Run, network: nn.Module, subject: str, member: int, on_batch: OnBatch) -> Timed:
    """One draw of a segmenter or generator for a subject, [Z, Y, X], as `inference.draw_member`."""
    return inference.draw_member(
        network,
        run.volume(subject),
        subject=subject,
        seed=run.seed,
        member=member,
        multiple=run.multiple,
        batch_size=run.batch_size,
        precision=run.autocast,
        on_batch=on_batch,
    )


def _members(run, denoise, diffusion, chain, one_step, subject, starts, members, on_batch) -> Timed:
    return inference.sample_members(
        denoise,
        run.volume(subject),
        starts,
        chain=chain,
        diffusion=diffusion,
        one_step=one_step,
        subject=subject,
        seed=run.seed,
        members=members,
        multiple=run.multiple,
        batch_size=run.batch_size,
        precision=run.autocast,
        on_batch=on_batch,
    )


@dataclass(frozen=True)
class Drawn:
    """Members of a method for a subject, [E, Z, Y, X], with what all of them cost: network calls a slice, seconds."""

    values: np.ndarray
    calls: int
    seconds: float


def draws(run: Run, weights: Path, subject: str, count: int, on_batch: OnBatch = silent) -> Drawn:
    """The first count draws of a trained segmenter or generator; a deterministic one has a single one, whatever count.

    A segmenter's are lesion probabilities, a generator's states of the chain. Cached beside the samples.
    """
    network = _source(run, weights)
    path = run.place.presegs(f"{weights.parent.name}-{weights.stem}") / _file_name(subject)
    recipe = _recipe(run, weights=digest(weights), seed=run.seed if network.stochastic else None)
    draw = partial(draw_once, run, network, subject, on_batch=on_batch)
    return _first_members(path, recipe, count if network.stochastic else 1, draw)


def starts(run: Run, source: Path | None, subject: str, count: int) -> Drawn:
    """What the first count members of a chain start from; [1, Z, Y, X] where it is the same for all of them.

    An empty mask (source None), the hard mask of a segmenter, that of each draw of a stochastic one, or the states of a
    generator.
    """
    if source is None:
        return Drawn(np.zeros((1, *run.volume(subject).brain.shape), np.float32), 0, 0.0)
    drawn = draws(run, source, subject, count)
    if isinstance(_source(run, source), ConditionalGan):
        return drawn
    return replace(drawn, values=(drawn.values >= run.threshold).astype(np.float32))


def state_statistics(run: Run, weights: Path, diffusion: Diffusion, t_prime: int, subjects: list[str]) -> pd.DataFrame:
    """A generator's states beside diffused references at the same index, inside the brains of subjects.

    Rows "diffused" and "drawn"; columns: the mean in and outside lesions, the deviation outside them, and that between
    two draws of the same subject.
    """
    found = {"diffused": [], "drawn": []}
    for subject in subjects:
        volume = run.volume(subject)
        start = torch.from_numpy(volume.mask[None].astype(np.float32))  # [1, Z, Y, X]
        streams = noise.subject_streams(run.seed, subject, torch.zeros(2, dtype=torch.int64), torch.arange(2))
        fresh = noise.normal(streams, noise.START, *volume.mask.shape)
        pair = ops.q_sample(diffusion.codec.encode(start).expand(2, -1, -1, -1), t_prime - 1, fresh, diffusion.schedule)
        for name, states in (("diffused", pair.numpy()), ("drawn", draws(run, weights, subject, 2).values)):
            found[name].append(states[:, volume.brain].astype(np.float64))
    lesion = np.concatenate([run.volume(subject).mask[run.volume(subject).brain] == 1 for subject in subjects])
    table = {}
    for name, parts in found.items():
        one, two = np.concatenate(parts, axis=1)
        table[name] = {
            "mean in lesions": one[lesion].mean(),
            "mean outside": one[~lesion].mean(),
            "deviation outside": one[~lesion].std(),
            "deviation between draws": (one - two)[~lesion].std() / np.sqrt(2),
        }
    return pd.DataFrame(table).T


def _source(run: Run, weights: Path) -> nn.Module:
    return _network(run, weights, "segmenter", "generator")[0]


def _network(run: Run, weights: Path, *kinds: str) -> tuple[nn.Module, dict]:
    """A trained network of one of these kinds, and its card; every network that a run uses comes through here.

    ValueError, naming the file, for one that was trained or chosen on other subjects than those of the run's fold.
    """
    network, card = _load_network(weights, digest(weights), run.device, kinds)
    own = splits.split_subjects(run._folds, test_fold=run.fold)
    for split in ("train", "validation"):
        if card["data"][split] != own[split]:
            raise ValueError(f"{weights}: its {split} subjects are not those of fold {run.fold}")
    return network, card


@lru_cache(maxsize=24)
def _load_network(weights: Path, digest: str, device: torch.device, kinds: tuple[str, ...]) -> tuple[nn.Module, dict]:
    """digest: another training in the same place is another network."""
    return inference.load_network(weights, device, *kinds)


@dataclass(frozen=True)
class Denoiser:
    """A trained denoiser, prepared for sampling, with the name of its training and what it was trained for."""

    name: str
    network: PreparedDenoiser
    diffusion: Diffusion
    t_max: int
    digest: str

    @classmethod
    def load(cls, run: Run, training: str = "denoiser") -> "Denoiser":
        """The best weights of a denoiser's training."""
        path = run.place.weights(training) / "best.safetensors"
        network, card = _network(run, path, "denoiser")
        diffusion, t_max = inference.build_diffusion(**card["diffusion"]), card["t_max"]
        return cls(training, run.prepare(network, t_max), diffusion, t_max, digest(path))


def chain_members(
    run: Run,
    denoiser: Denoiser,
    chain: Chain,
    source: Path | None,
    subject: str,
    count: int,
    on_batch: OnBatch = silent,
    one_step: Path | None = None,
) -> Drawn:
    """The first count members of a chain for a subject, [E, Z, Y, X]; only those not sampled before are sampled.

    source is what it starts from (see `starts`), one_step the weights of its last network, if it has one. The cost is
    the chain's, that of its start left out.
    """
    if chain.t_prime > denoiser.t_max:
        raise ValueError(f"T' = {chain.t_prime} exceeds the {denoiser.t_max} steps that the denoiser was trained on")
    last = None if one_step is None else _one_step(run, one_step)
    if last is not None and last.t_stop != chain.t_stop:
        raise ValueError(f"{one_step}: trained for t_stop = {last.t_stop}, and the chain stops at {chain.t_stop}")
    digests = {key: path and digest(path) for key, path in (("source", source), ("one_step", one_step))}
    recipe = _recipe(run, chain=asdict(chain), denoiser=denoiser.digest, seed=run.seed, **digests)
    name = f"{chain.start}_{chain.finish}_{chain.step}_{chain.t_prime:04d}_{chain.t_stop:04d}_{len(chain.indices)}"
    kind = hashlib.sha256(f"{chain} {denoiser.name} {one_step and one_step.parent.name}".encode()).hexdigest()[:8]
    place = run.place.samples("empty" if source is None else f"{source.parent.name}-{source.stem}", f"{name}_{kind}")

    def draw(member: int) -> Timed:
        begun = starts(run, source, subject, member + 1).values[-1:]
        members = range(member, member + 1)  # one a batch: its floats do not depend on how many are asked for
        return _members(run, denoiser.network, denoiser.diffusion, chain, last, subject, begun, members, on_batch)

    return _first_members(place / _file_name(subject), recipe, count, draw)


def _one_step(run: Run, weights: Path) -> OneStep:
    network, card = _network(run, weights, "one_step")
    return OneStep(network, card["t_stop"], card["mask_only"])


def _first_members(path: Path, recipe: str, count: int, draw: Callable[[int], Timed]) -> Drawn:
    """The first count members kept at path; those not there yet are drawn. One process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stored = _load(path, recipe)
        have = len(stored.values) if stored else 0
        if have < count:
            fresh = [draw(member) for member in range(have, count)]
            shape = fresh[0].values.shape[-3:]
            values = [*([stored.values] if stored else []), *(one.values.reshape(1, *shape) for one in fresh)]
            seconds = np.mean([one.seconds for one in fresh] + ([stored.seconds] * have if stored else []))
            stored = _store(path, recipe, Timed(np.concatenate(values), fresh[0].calls, float(seconds)))
    return Drawn(stored.values[:count], stored.calls * count, stored.seconds * count)


def members_rows(
    run: Run,
    members: np.ndarray,
    subject: str,
    *,
    method: str,
    split: str,
    nfe: int,
    seconds: float,
    t_prime: int | None,
) -> pd.DataFrame:
    """Scores of an ensemble [E, Z, Y, X] of a subject, and the spread of its members, as result rows."""
    volume = run.volume(subject)
    ensemble = inference.combine(members, threshold=run.threshold, vote=run.vote)
    scores = metrics.score_volume(labels(volume), ensemble.mask, volume.spacing_mm)
    if len(members) > 1:
        scores |= {
            "uncertainty": metrics.uncertainty(ensemble.variance, volume.brain),
            "relative_uncertainty": metrics.relative_uncertainty(ensemble.variance, volume.brain, volume.mask),
            "entropy": metrics.predictive_entropy(ensemble.mean, volume.brain),
        }
    about = {"method": method, "split": split, "nfe": nfe, "seconds": seconds, "t_prime": t_prime}
    return _score_rows(run, scores, members, subject, **about)


def _score_rows(run: Run, scores: dict[str, float], members: np.ndarray, subject: str, **about) -> pd.DataFrame:
    where = {"fold": run.fold, "seed": run.seed, "subject": subject, "site": run.site(subject)}
    return records.score_rows(scores, **where, ensemble_size=len(members), **about)


def _errors(run: Run, members: np.ndarray, subject: str) -> tuple[inference.Ensemble, np.ndarray, np.ndarray]:
    """The ensemble of members [E, Z, Y, X], the brain's voxels that count (not label 2), and the errors in them."""
    volume = run.volume(subject)
    ensemble = inference.combine(members, threshold=run.threshold, vote=run.vote)
    inside = volume.brain & ~volume.ignore
    return ensemble, inside, (ensemble.mask != (volume.mask == 1))[inside]


def risk_curve(run: Run, members: np.ndarray, subject: str, coverages: np.ndarray) -> pd.DataFrame:
    """Error rate of a subject's mask among the brain's voxels kept, by rising variance of members [E, Z, Y, X].

    Columns: coverage, risk, oracle, random (see `agreement.risk_coverage`), subject.
    """
    ensemble, inside, error = _errors(run, members, subject)
    return agreement.risk_coverage(error, ensemble.variance[inside], coverages).assign(subject=subject)


def agreement_rows(
    run: Run, members: np.ndarray, subject: str, *, method: str, split: str, t_prime: int | None, bins: int
) -> pd.DataFrame:
    """What a subject's members [E, Z, Y, X] say of the truth, as result rows: the distance to the raters and the Dice
    with them (NaN where there are none), the area under the risk-coverage curve inside the brain, with those of an
    oracle and of no order at all, and the calibration error of the mean, in `bins` bins. Label 2 is left out.
    """
    volume = run.volume(subject)
    ensemble, inside, error = _errors(run, members, subject)
    counted, truth = ~volume.ignore, volume.mask == 1
    areas = agreement.area_under_risk_coverage(error, ensemble.variance[inside])
    scores = {f"risk_area{'' if key == 'risk' else '_' + key}": value for key, value in areas.items()}
    scores["calibration_error"] = agreement.expected_calibration_error(ensemble.mean[inside], truth[inside], bins)
    raters = np.array([(drawn == 1)[counted] for drawn in run.raters(subject).values()])
    votes = (members >= run.threshold)[:, counted]
    for key, score in (
        ("energy_distance", agreement.generalised_energy_distance),
        ("rater_dice", agreement.sample_rater_dice),
    ):
        scores[key] = score(votes, raters) if len(raters) else np.nan
    about = {"method": method, "split": split, "nfe": pd.NA, "seconds": np.nan, "t_prime": t_prime}
    return _score_rows(run, scores, members, subject, **about)


def segmenter_rows(
    run: Run, weights: list[Path], *, method: str, split: str, on_batch: OnBatch, ensemble_size: int = 1
) -> pd.DataFrame:
    """Scores of a segmenter, or of the deep ensemble of several, for every subject of a split.

    ensemble_size: draws of each that are averaged; a deterministic network has one.
    """
    rows = []
    for subject in run.subjects(split):
        each = [draws(run, path, subject, ensemble_size, on_batch) for path in weights]
        rows.append(_rows(run, each, [], subject, method=method, split=split, t_prime=None))
    return pd.concat(rows, ignore_index=True)


def chain_rows(
    run: Run,
    denoiser: Denoiser,
    chain: Chain,
    source: Path | None,
    *,
    method: str,
    split: str,
    ensemble_size: int,
    on_batch: OnBatch,
    one_step: Path | None = None,
) -> pd.DataFrame:
    """Scores of a chain's ensemble for every subject of a split; the cost counts all members and their starts."""
    rows = []
    for subject in run.subjects(split):
        begun = starts(run, source, subject, ensemble_size)
        members = chain_members(run, denoiser, chain, source, subject, ensemble_size, on_batch, one_step)
        rows.append(_rows(run, [members], [begun], subject, method=method, split=split, t_prime=chain.t_prime))
    return pd.concat(rows, ignore_index=True)


def preseg_rows(run: Run, preseg: Path | None, *, method: str, split: str) -> pd.DataFrame:
    """Scores of a hard pre-segmentation by itself, the empty one (preseg None) included."""
    settings = {"method": method, "split": split, "t_prime": None}
    rows = [_rows(run, [starts(run, preseg, one, 1)], [], one, **settings) for one in run.subjects(split)]
    return pd.concat(rows, ignore_index=True)


def _rows(run: Run, drawn: list[Drawn], before: list[Drawn], subject: str, **about) -> pd.DataFrame:
    """Rows of the ensemble of all members drawn; what came before them costs too."""
    cost = {"nfe": sum(one.calls for one in drawn + before), "seconds": sum(one.seconds for one in drawn + before)}
    return members_rows(run, np.concatenate([one.values for one in drawn]), subject, **cost, **about)


def pick_checkpoints(curve: pd.Series, gaps: list[float]) -> list[int]:
    """Steps of one training with rising scores that lie closest to best - gap, the best checkpoint among them.

    curve: validation score by step; gaps: distances below the best score, one of them 0. Of all choices of distinct
    scores the one with the least sum of deviations is taken. ValueError where there are too few distinct scores.
    """
    distinct = curve.sort_index().drop_duplicates().sort_values()
    targets = distinct.iloc[-1] - np.sort(gaps)[::-1]
    if len(distinct) < len(targets):
        raise ValueError(f"{len(targets)} checkpoints asked of a training with {len(distinct)} distinct scores")
    choices = combinations(range(len(distinct) - 1), len(targets) - 1)
    chosen = min(choices, key=lambda choice: np.abs(distinct.iloc[[*choice, -1]] - targets).sum())
    return [int(step) for step in distinct.index[[*chosen, -1]]]


def ensemble_draws(
    run: Run, pool: np.ndarray, subject: str, *, method: str, split: str, t_prime: int, sizes: list[int], draws: int
) -> pd.DataFrame:
    """Dice of random ensembles drawn without replacement from a pool of members [P, Z, Y, X], as result rows.

    Column seed tells the draws apart: draw d takes the same members of every subject.
    """
    volume = run.volume(subject)
    rows = []
    for size in sizes:
        for draw in range(draws):
            chosen = np.random.default_rng((run.seed, size, draw)).choice(len(pool), size, replace=False)
            mask = inference.combine(pool[chosen], threshold=run.threshold, vote=run.vote).mask
            dice = metrics.score_volume(labels(volume), mask, volume.spacing_mm)["dice"]
            rows.append({"seed": draw, "ensemble_size": size, "value": dice})
    return pd.DataFrame(rows).assign(
        method=method,
        fold=run.fold,
        subject=subject,
        site=run.site(subject),
        split=split,
        t_prime=t_prime,
        nfe=pd.NA,
        seconds=np.nan,
        metric="dice",
        unit=records.UNITS["dice"],
    )[list(records.COLUMNS)]


def slice_count(run: Run, split: str) -> int:
    """Brain slices of a split: what a progress bar over network calls needs."""
    return sum(int(run.volume(subject).brain.any(axis=(1, 2)).sum()) for subject in run.subjects(split))


def _recipe(run: Run, **parts) -> str:
    parts |= {"data": run.data["fingerprint"], "precision": run.autocast}
    parts |= {"multiple": run.multiple, "threshold": run.threshold}
    return json.dumps(parts, sort_keys=True)


def digest(path: Path) -> str:
    """SHA-256 of a file: what a cache or a card remembers of the weights it stands on."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_name(subject: str) -> str:
    return subject.replace("/", "__") + ".npz"


def _store(path: Path, recipe: str, timed: Timed) -> Timed:
    """Keep a prediction in half precision, whole or not at all; returns it as a later run will read it."""
    values = timed.values.astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            values=values,
            calls=timed.calls,
            seconds=timed.seconds,
            recipe=recipe,
        )
    os.replace(temporary, path)
    return Timed(values.astype(np.float32), timed.calls, timed.seconds)


def _load(path: Path, recipe: str) -> Timed | None:
    if not path.exists():
        return None
    with np.load(path) as stored:
        if str(stored["recipe"]) != recipe:
            return None
        return Timed(stored["values"].astype(np.float32), int(stored["calls"]), float(stored["seconds"]))
