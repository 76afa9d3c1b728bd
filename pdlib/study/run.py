"""One fold of one profile: where things lie, which cases it has, and the networks trained on them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache

import numpy as np
import pandas as pd
import torch
from torch import nn

from pdlib.data import folds as splits
from pdlib.data import wmh
from pdlib.diffusion.latent import latent_diffusion
from pdlib.diffusion.sampler import Diffusion, build_diffusion
from pdlib.evaluation import records
from pdlib.graph import needed, place_of
from pdlib.inference.precision import Compute, choose_device, fast_precision
from pdlib.inference.volumes import Subject
from pdlib.inference.window import brain_slices
from pdlib.networks.prepared import PreparedDenoiser
from pdlib.paths import ROOT, Layout, committed_weights
from pdlib.profiles import Profile, load_profile
from pdlib.training.bank import SliceBank
from pdlib.training.weights import Weights, load_weights
from pdlib.workflow import require


@dataclass(frozen=True)
class Run:
    """What a notebook works with.

    Args:
        profile: every setting.
        place: the folders of the test fold.
        data: what the first notebook recorded: root, fingerprint, clip_percentiles, phantom and given (bool),
            cpu_precision, threshold_dice.
        compute: device, precision and batch size.
    """

    profile: Profile
    place: Layout
    data: Mapping
    compute: Compute

    @classmethod
    def open(
        cls,
        notebook: str,
        profile: str,
        fold: int | None = None,
        out: str = "",
        changes: Mapping | None = None,
    ) -> "Run":
        """The run that a notebook belongs to; the earlier notebooks run first where they have not.

        fold None is the profile's own; out "" is $PDLIB_OUT or the repository. ProfileError for settings that cannot be
        used.
        """
        settings = load_profile(profile, changes)
        place = place_of(settings, out, fold)
        require(place, settings, needed(notebook, settings))
        return cls.at(place, settings)

    @classmethod
    def at(cls, place: Layout, profile: Profile) -> "Run":
        """The run at a place where the data have been prepared."""
        data = json.loads(place.cases.read_text(encoding="utf-8"))
        machine, device = profile.machine, choose_device(profile.machine.device)
        precision = machine.precision
        if precision == "auto":  # a CPU's was measured once, for all jobs of the run
            precision = data["cpu_precision"] if device.type == "cpu" else fast_precision(device)
        return cls(profile, place, data, Compute(device, precision, machine.batch_size))

    @property
    def scored(self) -> "Run":
        """The run whose scores the ledger reads: this one, or the reference's, of which a clone has results alone."""
        if self.profile.reference is None:
            return self
        place = Layout(ROOT, self.profile.reference)
        stamp = records.read_stamp(place.folds)
        data = {"phantom": stamp["phantom"], "fingerprint": stamp["data_fingerprint"]}
        return replace(self, profile=load_profile(self.profile.reference), place=place, data=data)

    @property
    def fold(self) -> int:
        """The test fold."""
        return self.place.fold

    @property
    def seed(self) -> int:
        """Of the chains' noise."""
        return self.profile.seed

    @property
    def note(self) -> str:
        """What stands in the corner of a figure: "phantom", or nothing for real data."""
        return "phantom" if self.data["phantom"] else ""

    @property
    def whose(self) -> str:
        """Whose scores a table shows: data, profile, number of test subjects."""
        few, key = len(self.subjects("test")), len(self.subjects("key"))
        tested = f"{few} test subjects" if few == key else f"{key} test subjects of the key rows, {few} of the others"
        return f"{self.made_by}, {tested}"

    def whose_in(self, scores: pd.DataFrame) -> str:
        """As `whose`, by the subjects that a table's own score rows hold."""
        counts = scores[scores.split == "test"].groupby("method").subject.nunique()
        return f"{self.made_by}, {' or '.join(map(str, sorted({*counts})))} test subjects"

    @property
    def made_by(self) -> str:
        """The kind of its data and its profile, for a caption."""
        return f"{self.note or 'real data'}, profile {self.place.profile}"

    def subjects(self, split: str) -> list[str]:
        """Subjects of "train", "validation" or "test", which every row is tested on; "key" are those of the key rows.

        "test" is a part of "key", or the same where there are no further subjects (see `folds.with_further`).
        """
        return self._splits[split]

    def tested(self, name: str) -> list[str]:
        """The subjects that a row, a key of METHODS, is tested on."""
        return self.subjects("key" if name in self.profile.repeats.key_methods else "test")

    def seed_of(self, subject: str) -> int:
        """The repeat whose networks segment a subject: the first where no further one is."""
        return int(self._about[subject].get("seed", self.profile.repeats.seeds[0]))

    def spread(self, split: str, count: int) -> list[str]:
        """A few subjects of a split, spread over its order and so over the sites; all of them where it has no more."""
        return spread_over(self.subjects(split), count)

    def site(self, subject: str) -> str:
        """The site of a subject."""
        return self._about[subject]["site"]

    @cached_property
    def _folds(self) -> pd.DataFrame:
        return records.read_table(self.place.folds)

    @cached_property
    def _about(self) -> dict[str, dict]:
        return self._folds.set_index("subject").to_dict("index")

    @cached_property
    def _splits(self) -> dict[str, list[str]]:
        return splits.split_subjects(self._folds, test_fold=self.fold)

    def volume(self, subject: str) -> wmh.Volume:
        """A case, read and normalised (kept in memory)."""
        return _read_case(self.data["root"], subject, tuple(self.data["clip_percentiles"]))

    def subject(self, name: str) -> Subject:
        """A case with what its random streams and its window need."""
        return Subject(self.volume(name), name, self.seed, self.profile.data.multiple)

    def raters(self, subject: str) -> dict[str, np.ndarray]:
        """Further raters' labels of a subject, [Z, Y, X] each, by the observer's name; none where there are none."""
        case = _cases(self.data["root"])[subject]
        return wmh.read_raters(self.data["root"], case, self.volume(subject).grid)

    def labels(self, subject: str) -> np.ndarray:
        """A subject's reference [Z, Y, X] with 1 = lesion, 2 = other pathology."""
        volume = self.volume(subject)
        return volume.mask + 2 * volume.ignore.astype(np.uint8)

    def slice_count(self, *parts: str) -> int:
        """Brain slices of some splits: what a progress bar over network calls needs."""
        names = [name for part in parts for name in self.subjects(part)]
        return sum(int(self.volume(name).brain.any(axis=(1, 2)).sum()) for name in names)

    def training_slices(
        self, subjects: Sequence[str] | None = None, presegs: Mapping[str, np.ndarray] | None = None
    ) -> SliceBank:
        """All brain slices of the training subjects, or of some of them.

        presegs: a hard mask [Z, Y, X] of each subject, to be a second channel of the masks, cropped and flipped as the
        reference is.
        """
        images, masks = [], []
        for subject in self.subjects("train") if subjects is None else subjects:
            volume = self.volume(subject)
            image, window = brain_slices(volume, 1)
            channels = [volume.mask] if presegs is None else [volume.mask, presegs[subject]]
            images += list(image)
            masks += list(torch.from_numpy(np.stack([window.cut(one) for one in channels], axis=1)).float())
        return SliceBank(images, masks, self.profile.data.t1_dropped)

    def weights(self, training: str, checkpoint: str = "best") -> Weights:
        """A training's weights, read once. ValueError, naming the file, for those of other subjects than this fold's,
        and for the best of a training that has not ended.

        A run with changed settings takes the profile's where it has none of its own and the changes leave them alone. A
        profile with a `reference` takes the best out of weights/, whose subjects are others, where they come along.
        """
        if self.profile.reference and checkpoint == "best" and committed_weights(training).exists():
            return load_weights(committed_weights(training)).require_finished()
        path = self.place.weights(training) / f"{checkpoint}.safetensors"
        if not path.exists():
            path = self.place.trained.weights(training) / f"{checkpoint}.safetensors"
        weights = load_weights(path)
        if checkpoint == "best":
            weights.require_finished()
        if weights.card["data"]["fingerprint"] != self.data["fingerprint"]:
            raise ValueError(f"{path}: trained on other data than the cases that notebook 01 has read")
        for split in ("train", "validation"):
            if weights.card["data"][split] != self.subjects(split):
                raise ValueError(f"{path}: its {split} subjects are not those of fold {self.fold}")
        return weights

    def begun_with(self, training: str) -> Weights | None:
        """The weights that a training goes on from; None: it begins anew."""
        path = committed_weights(training, self.profile.name)
        if self.data["phantom"] or not (self.profile.fine_tune and path.exists()):
            return None
        return load_weights(path).require_finished()

    def network(self, weights: Weights, *kinds: str) -> nn.Module:
        """The network of some weights on this run's device, built once; ValueError if it is of none of these kinds."""
        weights.require_kind(*kinds)
        return _built(weights, self.compute.device)

    def denoiser(self, weights: Weights) -> PreparedDenoiser:
        """A trained denoiser, prepared for sampling once."""
        weights.require_kind("denoiser")
        return _prepared(weights, self.compute)

    def prepare(self, network: nn.Module, t_max: int) -> PreparedDenoiser:
        """A denoiser as it stands now, ready to be sampled with from any index below t_max."""
        return PreparedDenoiser(network, t_max, self.compute.precision)

    def stamp(self) -> dict:
        """The provenance of a table that this run writes."""
        return records.stamp(
            root=ROOT,
            device=torch.cuda.get_device_name() if self.compute.device.type == "cuda" else "cpu",
            seed=self.seed,
            data_fingerprint=self.data["fingerprint"],
            phantom=self.data["phantom"],
            profile=self.place.profile,
            changes=self.profile.changes,
        )

    def write(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Write a table below results/ with this run's stamp; the kept table (see `records.write_table`)."""
        return records.write_table(self.place.results / f"{name}.csv", frame, self.stamp())

    def data_card(self) -> dict:
        """What a network's card tells of its data: which they were, and what `segment` needs to make others alike."""
        spacings = np.array([self.volume(subject).spacing_mm for subject in self.subjects("train")])
        return {
            "fingerprint": self.data["fingerprint"],
            "phantom": self.data["phantom"],
            "train": self.subjects("train"),
            "validation": self.subjects("validation"),
            "precision": self.compute.precision,
            "clip_percentiles": self.data["clip_percentiles"],
            "multiple": self.profile.data.multiple,
            "t1_dropped": self.profile.data.t1_dropped,
            "in_plane_mm": _range(spacings[:, 1:]),
            "slice_mm": _range(spacings[:, 0]),
        }


def _range(values: np.ndarray) -> dict:
    """Of each column, or of a single one."""
    ends = {"low": values.min(axis=0), "median": np.median(values, axis=0), "high": values.max(axis=0)}
    return {name: end.tolist() for name, end in ends.items()}


def spread_over(items: Sequence, count: int) -> list:
    """A few items, spread evenly over their order, first and last among them; all where there are no more."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in places]


@lru_cache(maxsize=8)  # one schedule object a denoiser, by which tables of steps are cached
def diffusion_of(weights: Weights, autoencoder: Weights | None = None, device: torch.device | None = None) -> Diffusion:
    """What a denoiser was trained with, from its card; of a latent one with the auto-encoder, on a device."""
    if autoencoder is None:
        return build_diffusion(**weights.card["diffusion"])
    return latent_diffusion(weights.card["diffusion"], _built(autoencoder, device))


@lru_cache(maxsize=24)
def _built(weights: Weights, device: torch.device) -> nn.Module:
    return weights.build(device, weights.card["kind"])


@lru_cache(maxsize=8)
def _prepared(weights: Weights, compute: Compute) -> PreparedDenoiser:
    return PreparedDenoiser(_built(weights, compute.device), weights.card["t_max"], compute.precision)


@cache
def _cases(root: str) -> dict[str, wmh.Case]:
    return {case.subject: case for case in wmh.find_cases(root)}


@cache
def _read_case(root: str, subject: str, clip_percentiles: tuple[float, float]) -> wmh.Volume:
    return wmh.read_case(_cases(root)[subject], clip_percentiles=clip_percentiles)
