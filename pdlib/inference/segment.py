"""A segmentation for a person: two image files in; mask, mean, uncertainty and an overlay out."""

import hashlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch.nn.functional import interpolate

from pdlib.data import wmh
from pdlib.diffusion.sampler import Sampler, build_diffusion
from pdlib.inference.chains import chain_of
from pdlib.inference.outputs import Outputs
from pdlib.inference.precision import Compute, choose_device, fast_precision
from pdlib.inference.volumes import Ensemble, Subject, combine, draw_member, sample_members
from pdlib.methods import CHAIN, METHODS
from pdlib.networks.prepared import PreparedDenoiser
from pdlib.paths import BEST_FIRST, COMMITTED, weights_folder, write_whole
from pdlib.profiles import profile_names
from pdlib.progress import tqdm
from pdlib.report.slices import overlay_figure
from pdlib.sections.design import ChainSettings
from pdlib.training.weights import Weights, load_weights, same_data

FILES = {
    "mask": "mask.nii.gz",
    "mean": "mean.nii.gz",
    "uncertainty": "uncertainty.nii.gz",
    "overlay": "overlay.png",
}
BYTES_A_VOXEL = np.dtype("u1").itemsize + 2 * np.dtype("f4").itemsize  # mask, mean and uncertainty, not compressed
OVERLAY_BYTES = 2**22  # several times a large one


@dataclass(frozen=True)
class Segmentation:
    """What `segment_files` did.

    Args:
        weights: the folder of the networks used.
        profile: whose networks these are; None where a folder was named and for the repository's.
        notes: what is doubtful about the input, a line each.
        files: what was written: mask, mean, uncertainty and overlay.
    """

    weights: Path
    profile: str | None
    notes: tuple[str, ...]
    files: dict[str, Path]


@dataclass(frozen=True)
class Trained:
    """A denoiser and its pre-segmenter, both trained to the end on the same subjects."""

    folder: Path
    profile: str | None
    denoiser: Weights
    segmenter: Weights

    @classmethod
    def read(cls, folder: Path, profile: str | None = None) -> "Trained":
        """The networks of a folder; ValueError, naming the file, where one is missing, unfinished or does not fit."""
        denoiser = load_weights(folder / "denoiser_0" / "best.safetensors").require_kind("denoiser")
        _require_settings(denoiser)
        name = f"{denoiser.card['sampling']['presegmenter']}_0"
        segmenter = load_weights(folder / name / "best.safetensors").require_kind("segmenter")
        same_data(denoiser, segmenter)
        return cls(folder, profile, denoiser.require_finished(), segmenter.require_finished())

    @property
    def whose(self) -> str:
        """Whose networks these are, for a reader, in brackets; nothing where a folder was named."""
        if self.profile is not None:
            return f" (profile {self.profile})"
        return f" (of the repository, trained by profile {self.denoiser.card['profile']})" if self.committed else ""

    @property
    def committed(self) -> bool:
        """Whether these are the networks that the repository comes with."""
        return self.folder == COMMITTED

    @property
    def sampling(self) -> dict:
        """How to sample, as the profile of the training had it."""
        return self.denoiser.card["sampling"]

    @property
    def data(self) -> dict:
        """What the networks were trained on."""
        return self.denoiser.card["data"]


def segment_files(
    flair: Path, t1: Path, out: Path, weights: Path | str | None = None, brain_mask: Path | None = None
) -> Segmentation:
    """Segment one patient with PD-DDPM; write mask, mean, uncertainty (NIfTI, the FLAIR's grid) and overlay (PNG).

    weights: a profile's name (text), a folder that holds `denoiser_0/` and the pre-segmenter it names, or None for
    those of the best profile that has a complete set (`paths.BEST_FIRST`), or else those that the repository comes with
    (`paths.COMMITTED`). Images whose in-plane voxels are far from those of the training are resampled to them, and the
    prediction back. The four files appear together or not at all, and never in place of an input. Says on stderr which
    weights are used, and what is doubtful about the input.
    ValueError or OSError, naming the file, for input, weights or output that cannot be used.
    """
    outputs = Outputs(Path(out), tuple(FILES.values()))
    given = {"FLAIR": flair, "T1": t1, "brain mask": brain_mask}
    outputs.refuse_harm({role: Path(path) for role, path in given.items() if path is not None})
    trained, passed_over = find_trained(weights)
    clip = tuple(trained.data["clip_percentiles"])
    volume = wmh.read_images(flair, t1, clip_percentiles=clip, brain_mask_path=brain_mask)
    working = _to_training_voxels(volume, trained.data["in_plane_mm"], trained.sampling["voxel_tolerance"])
    if working is None:
        raise wmh.CaseError.of(flair, f"voxels of {volume.spacing_mm} mm cannot be brought to those of the training")
    with outputs.written(volume.brain.size * BYTES_A_VOXEL + OVERLAY_BYTES) as folder:
        _say(f"weights: {trained.folder}{trained.whose}")
        for note in (*passed_over, *volume.notes):
            _say(f"warning: {note}")
        name = hashlib.sha256(volume.image.tobytes()).hexdigest()
        subject = Subject(working, name, trained.sampling["seed"], trained.data["multiple"])
        members = _resize(_members(trained, subject), volume.brain.shape[1:], antialias=False) * volume.brain
        settings = trained.sampling["ensemble"]
        ensemble = combine(members, threshold=settings["threshold"], vote=settings["vote"])
        _write(folder, volume, ensemble, "networks trained on a phantom" if trained.data["phantom"] else "")
    return Segmentation(trained.folder, trained.profile, volume.notes, dict(zip(FILES, outputs.paths, strict=True)))


def find_trained(weights: Path | str | None) -> tuple[Trained, tuple[str, ...]]:
    """The networks to use, and why better profiles are passed over; see `segment_files` for weights.

    ValueError or FileNotFoundError, naming the file, where these are none.
    """
    if weights is None:
        return _best_trained()
    if isinstance(weights, str) and weights in profile_names():
        folder = weights_folder(weights)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: nothing trained; run `make reproduce PROFILE={weights}` first")
        return Trained.read(folder, weights), ()
    if not Path(weights).is_dir():
        raise FileNotFoundError(f"{weights}: no folder of weights, nor a profile ({', '.join(profile_names())})")
    return Trained.read(Path(weights)), ()


def _best_trained() -> tuple[Trained, tuple[str, ...]]:
    passed_over = []
    for profile in BEST_FIRST:
        folder = weights_folder(profile)
        if folder.is_dir():
            try:
                return Trained.read(folder, profile), tuple(passed_over)
            except ValueError as error:
                passed_over.append(f"profile {profile} is passed over: {error}")
    if (COMMITTED / "denoiser_0").is_dir():
        return Trained.read(COMMITTED), tuple(passed_over)
    others = [name for name in profile_names() if name not in BEST_FIRST and weights_folder(name).is_dir()]
    advice = "".join(f", or --weights {name} for a try" for name in others)
    causes = "".join(f"; {cause}" for cause in passed_over)
    runs = weights_folder(BEST_FIRST[-1]).parents[1]
    raise FileNotFoundError(
        f"{runs}: no profile ({', '.join(BEST_FIRST)}) has a complete set of trained networks;"
        f" run `make reproduce` first, or pass --weights FOLDER{advice}{causes}"
    )


def _require_settings(denoiser: Weights) -> None:
    """ValueError, naming the file, where its card lacks what sampling needs."""
    needed = {
        "sampling": ("presegmenter", "chain", "ensemble", "voxel_tolerance", "seed", "batch_size"),
        "data": ("clip_percentiles", "in_plane_mm", "multiple", "phantom"),
        "diffusion": ("schedule", "codec", "prediction"),
    }
    sections = {name: denoiser.card.get(name) for name in needed}
    sections = {name: section if isinstance(section, Mapping) else {} for name, section in sections.items()}
    missing = [f"{name}.{key}" for name, keys in needed.items() for key in keys if key not in sections[name]]
    if missing:
        raise ValueError(f"{denoiser.path}: its card lacks {', '.join(missing)}: train it again")
    try:
        ChainSettings(**sections["sampling"]["chain"])
    except (ValidationError, TypeError) as error:
        raise ValueError(f"{denoiser.path}: its card's chain cannot be used ({' '.join(str(error).split())})") from None


def _members(trained: Trained, subject: Subject) -> np.ndarray:
    """The ensemble's members [E, Z, Y, X] of the pre-segmentation's chain, in 0..1."""
    sampling, card = trained.sampling, trained.denoiser.card
    device = choose_device("auto")
    compute = Compute(device, fast_precision(device), sampling["batch_size"])
    denoiser = PreparedDenoiser(trained.denoiser.build(device, "denoiser"), card["t_max"], compute.precision)
    segmenter = trained.segmenter.build(device, "segmenter")
    diffusion = build_diffusion(**card["diffusion"])
    chain = chain_of(METHODS[CHAIN], ChainSettings(**sampling["chain"]), diffusion.schedule.steps)
    size, slices = sampling["ensemble"]["size"], int(subject.volume.brain.any(axis=(1, 2)).sum())
    with tqdm(total=slices * (1 + size * len(chain.indices)), unit="call", desc="network calls on slices") as bar:
        drawn = draw_member(segmenter, subject, 0, compute, bar.update).values
        preseg = drawn >= sampling["ensemble"]["threshold"]
        sampler = Sampler(denoiser, diffusion, chain)
        return sample_members(sampler, subject, preseg[None], range(size), compute, bar.update).values


def _write(folder: Path, volume: wmh.Volume, ensemble: Ensemble, note: str) -> None:
    arrays = {
        "mask": ensemble.mask.astype(np.uint8),
        "mean": ensemble.mean.astype(np.float32),
        "uncertainty": ensemble.variance.astype(np.float32),
    }
    for name, values in arrays.items():
        wmh.write_volume(folder / FILES[name], values, volume.grid, values.dtype)
    figure = overlay_figure(
        volume.image, None, ensemble.mask, ensemble.variance, spacing_mm=volume.spacing_mm, columns=6, note=note
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=200)
    write_whole(folder / FILES["overlay"], drawn.getvalue())
    if note:
        _say(f"{note}: a demonstration, no medical finding")


def _say(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr)


def _to_training_voxels(volume: wmh.Volume, in_plane_mm: dict, tolerance: float) -> wmh.Volume | None:
    """The volume with in-plane voxels like those of the training; itself where they are within tolerance of them.

    None where no brain is left, or more voxels than a case may have.
    """
    have = np.array(volume.spacing_mm[1:])
    low, high = np.array(in_plane_mm["low"]), np.array(in_plane_mm["high"])
    if (have >= low * (1 - tolerance)).all() and (have <= high * (1 + tolerance)).all():
        return volume
    shape = np.maximum(1, np.round(volume.brain.shape[1:] * have / in_plane_mm["median"])).astype(int)
    if np.prod(shape, dtype=float) * len(volume.brain) > wmh.MAX_VOXELS:
        return None
    image = _resize(volume.image, shape, antialias=True)
    brain = _resize(volume.brain[None].astype(np.float32), shape, antialias=True)[0] >= 0.5
    if not brain.any():
        return None
    spacing = (volume.spacing_mm[0], *(have * volume.brain.shape[1:] / shape))
    return replace(volume, image=image * brain, brain=brain, spacing_mm=spacing)


def _resize(stack: np.ndarray, shape: tuple[int, int], *, antialias: bool) -> np.ndarray:
    """Bilinear in-plane resampling, [C, Z, Y, X] -> [C, Z, *shape]; the same array where the shape is the same."""
    if tuple(shape) == stack.shape[2:]:
        return stack
    size = [int(length) for length in shape]
    return interpolate(torch.from_numpy(stack), size=size, mode="bilinear", antialias=antialias).numpy()
