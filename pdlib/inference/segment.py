"""A segmentation for a person: one or two image files in; mask, mean, uncertainty, overlay, report and page out."""

import hashlib
import io
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pdlib.data.folder import Scan
from pdlib.data.nifti import CaseError, write_volume
from pdlib.data.scan import read_scan
from pdlib.data.wmh import Volume
from pdlib.diffusion.sampler import Sampler, build_diffusion
from pdlib.evaluation.quality import Origin, agreement, image_statistics
from pdlib.inference.outputs import Outputs
from pdlib.inference.precision import Compute, choose_device, steady_precision
from pdlib.inference.slices import OnBatch, silent
from pdlib.inference.summary import (
    REPORT,
    Cost,
    InputFile,
    Networks,
    Settings,
    Summary,
    measured,
    peak_memory_mb,
    score_of,
)
from pdlib.inference.trained import Changes, Sampling, Trained, find_trained
from pdlib.inference.volumes import Ensemble, Subject, combine, draw_member, sample_members
from pdlib.inference.working import to_training_voxels
from pdlib.networks.prepared import PreparedDenoiser
from pdlib.paths import write_whole
from pdlib.progress import tqdm
from pdlib.report.page import page
from pdlib.report.slices import overlay_figure
from pdlib.training.weights import Weights

FILES = {
    "mask": "mask.nii.gz",
    "mean": "mean.nii.gz",
    "uncertainty": "uncertainty.nii.gz",
    "overlay": "overlay.png",
    "report": REPORT,
    "page": "report.html",
}
BYTES_A_VOXEL = np.dtype("u1").itemsize + 2 * np.dtype("f4").itemsize  # mask, mean and uncertainty, not compressed
PICTURE_BYTES = 2**24  # of overlay and page together, several times large ones
NO_CHANGES = Changes()
_DEVICES = "choose auto, cpu, cuda, cuda:N or mps"


@dataclass(frozen=True)
class Segmentation:
    """What was done for one scan.

    Args:
        weights: the folder of the networks used.
        profile: whose networks these are; None where a folder was named and for the repository's.
        notes: what was repaired in the input and what is doubtful about it, a line each.
        files: what was written, by the names of FILES.
        seconds: it took.
    """

    weights: Path
    profile: str | None
    notes: tuple[str, ...]
    files: dict[str, Path]
    seconds: float


@dataclass(frozen=True)
class Ready:
    """Networks, how to sample with them, and where: what all scans of a call share."""

    trained: Trained
    passed_over: tuple[str, ...]
    sampling: Sampling
    device: torch.device

    @classmethod
    def of(cls, weights: Path | str | None = None, changes: Changes = NO_CHANGES, device: str = "auto") -> "Ready":
        """Find the networks; see `segment_files` for weights. ValueError or OSError where something cannot be used."""
        where = find_device(device)
        trained, passed_over = find_trained(weights)
        return cls(trained, passed_over, trained.how(changes), where)

    @property
    def compute(self) -> Compute:
        """How networks are run here."""
        return Compute(self.device, steady_precision(self.device), self.trained.sampling["batch_size"])

    def fingerprint(self, inputs: Mapping[str, InputFile]) -> str:
        """What the result depends on, as the mask's header keeps it: the files, the networks, and how to sample."""
        digest = hashlib.sha256(repr(self.sampling).encode())
        digest.update(repr((self.trained.digests, self.trained.quality)).encode())
        for role, given in inputs.items():
            digest.update(f"{role} {given.sha256}".encode())
        return f"pdlib segment {digest.hexdigest()[:32]}"


@dataclass(frozen=True, eq=False)
class Result:
    """What came out for one scan, all that a file of the result may show. Arrays lie on the FLAIR's own grid.

    Args:
        inputs: the files, by role.
        volume: as it was read; working: as the networks saw it, on voxels like those of the training.
        members: [E, Z, Y, X] float32 in 0..1, zero outside the brain.
        ensemble: mask, mean and variance of the members, [Z, Y, X] each.
        notes: what was repaired in the input and what is doubtful about it, a line each.
        seconds: it took until here.
    """

    inputs: Mapping[str, InputFile]
    volume: Volume
    working: Volume
    members: np.ndarray
    ensemble: Ensemble
    notes: tuple[str, ...]
    seconds: float


def segment_files(
    flair: Path,
    t1: Path | None,
    out: Path,
    weights: Path | str | None = None,
    brain_mask: Path | None = None,
    changes: Changes = NO_CHANGES,
) -> Segmentation:
    """Segment one patient with PD-DDPM; write mask, mean and uncertainty (NIfTI, the FLAIR's grid), overlay (PNG),
    report (JSON, `inference.summary`) and page (HTML, `report.page`).

    weights: a profile's name (text), a folder that holds `denoiser_0/` and the pre-segmenter it names, or None for
    those of the best profile (`paths.BEST_FIRST`) that has a complete set, trained here or come with the repository, or
    else the reference study's (`paths.COMMITTED`). See `data.scan` for what is repaired in the input, and
    `segment_scan` for the rest.
    """
    return segment_scan(Ready.of(weights, changes), Scan(Path(out).name, flair, t1, brain_mask), out)


def segment_scan(ready: Ready, scan: Scan, out: Path) -> Segmentation:
    """Segment one scan into files in `out`, which appear together or not at all, and never in place of an input.

    Images with voxels far from those of the training are resampled to them, and the prediction back. Says on stderr
    which weights are used, and what is doubtful about the input. The same input gives the same voxels on one machine.
    ValueError or OSError, naming the file, for input, weights or output that cannot be used.
    """
    started, trained = time.perf_counter(), ready.trained
    outputs = Outputs(Path(out), tuple(FILES.values()))
    outputs.refuse_harm(scan.files)
    if scan.t1 is None and not trained.takes_flair_alone:
        raise CaseError.of(
            scan.flair,
            f"no T1 beside it, and the networks in {trained.folder}{trained.whose} were never trained without one:"
            " give --t1 FILE, or --weights of networks that were (data.t1_dropped in their card)",
        )
    clip = tuple(trained.data["clip_percentiles"])
    volume = read_scan(scan.flair, scan.t1, clip_percentiles=clip, brain_mask_path=scan.brain_mask)
    inputs = inputs_of(scan)
    working = to_training_voxels(volume, trained.data, trained.sampling["voxel_tolerance"])
    if working is None:
        raise CaseError.of(scan.flair, f"voxels of {volume.spacing_mm} mm cannot be brought to those of the training")
    with outputs.written(volume.brain.size * BYTES_A_VOXEL + PICTURE_BYTES) as folder:
        _say(f"weights: {trained.folder}{trained.whose}")
        notes = volume.notes + working.notes
        if ready.sampling.members == 1:
            notes += ("one member alone has no uncertainty: that image is zero",)
        for note in (*ready.passed_over, *notes):
            _say(f"warning: {note}")
        name = hashlib.sha256(volume.image.tobytes()).hexdigest()
        subject = Subject(working.volume, name, ready.sampling.seed, trained.data["multiple"])
        members = working.back(_members(ready, subject)) * volume.brain
        ensemble = combine(members, threshold=ready.sampling.threshold, vote=ready.sampling.vote)
        seconds = time.perf_counter() - started
        _write(folder, Result(inputs, volume, working.volume, members, ensemble, notes, seconds), ready)
    files = dict(zip(FILES, outputs.paths, strict=True))
    return Segmentation(trained.folder, trained.profile, notes, files, time.perf_counter() - started)


def inputs_of(scan: Scan) -> dict[str, InputFile]:
    """The files of a scan, hashed, by role. CaseError naming one that cannot be read."""
    return {role: InputFile.read(path) for role, path in scan.files.items()}


def find_device(name: str) -> torch.device:
    """The device called name, "auto" for a GPU where there is one; ValueError where this machine has none such."""
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        raise ValueError(f"--device {name}: no such device; {_DEVICES}") from None
    if name == "auto" or device.type == "cpu":
        return choose_device(name)
    kinds = {"cuda": torch.cuda, "mps": torch.mps}
    if device.type not in kinds:
        raise ValueError(f"--device {name}: not used here; {_DEVICES}")
    count = kinds[device.type].device_count()
    if (device.index or 0) >= count:
        raise ValueError(f"--device {name}: this machine, or its torch, has {count} such; {_DEVICES}")
    return choose_device(name)


def presegment(ready: Ready, subject: Subject, on_batch: OnBatch = silent) -> np.ndarray:
    """The mask [Z, Y, X] bool that the chain starts from."""
    weights = ready.trained.segmenter
    drawn = draw_member(weights.build(ready.device, "segmenter"), subject, 0, ready.compute, on_batch).values
    return _finite(drawn, weights) >= ready.sampling.preseg_threshold


def _members(ready: Ready, subject: Subject) -> np.ndarray:
    """The ensemble's members [E, Z, Y, X] of the pre-segmentation's chain, in 0..1."""
    trained, sampling, compute = ready.trained, ready.sampling, ready.compute
    card = trained.denoiser.card
    denoiser = PreparedDenoiser(trained.denoiser.build(ready.device, "denoiser"), card["t_max"], compute.precision)
    calls, slices = len(sampling.chain.indices), int(subject.volume.brain.any(axis=(1, 2)).sum())
    with tqdm(total=slices * (1 + sampling.members * calls), unit="call", desc="network calls on slices") as bar:
        start = presegment(ready, subject, bar.update)
        sampler = Sampler(denoiser, build_diffusion(**card["diffusion"]), sampling.chain)
        drawn = sample_members(sampler, subject, start[None], range(sampling.members), compute, bar.update).values
        return _finite(drawn, trained.denoiser)


def _finite(drawn: np.ndarray, weights: Weights) -> np.ndarray:
    """What a network has drawn; ValueError, naming its file, where that is no number: finite weights can overflow."""
    if not np.isfinite(drawn).all():
        raise ValueError(f"{weights.path}: the network gives numbers that are not finite, so there is no result")
    return drawn


def _write(folder: Path, result: Result, ready: Ready) -> None:
    """Write every file of FILES into a folder: a new one needs its name there and its lines here."""
    volume, ensemble = result.volume, result.ensemble
    arrays = {
        "mask": ensemble.mask.astype(np.uint8),
        "mean": ensemble.mean.astype(np.float32),
        "uncertainty": ensemble.variance.astype(np.float32),
    }
    made_of = ready.fingerprint(result.inputs)
    for name, values in arrays.items():
        write_volume(folder / FILES[name], values, volume.grid, values.dtype, made_of)
    note = "networks trained on a phantom" if ready.trained.data["phantom"] else ""
    figure = overlay_figure(
        volume.image, None, ensemble.mask, ensemble.variance, spacing_mm=volume.spacing_mm, columns=6, note=note
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=200)
    write_whole(folder / FILES["overlay"], drawn.getvalue())
    summary = summarised(result, ready)
    write_whole(folder / FILES["report"], summary.text)
    shown = (volume.image[0], ensemble.mask, ensemble.variance, volume.grid, drawn.getvalue())
    write_whole(folder / FILES["page"], page(summary.content, *shown))
    if note:
        _say(f"{note}: a demonstration, no medical finding")


def summarised(result: Result, ready: Ready) -> Summary:
    """The report of a result."""
    trained, sampling, volume, working = ready.trained, ready.sampling, result.volume, result.working
    mask, mean, variance = result.ensemble.mask, result.ensemble.mean, result.ensemble.variance
    phantom, threshold, calls = trained.data["phantom"], sampling.threshold, len(sampling.chain.indices)
    origin = Origin(
        networks=trained.digests, phantom=phantom, members=sampling.members, calls=calls, threshold=threshold
    )
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    agreed = agreement(result.members, mask, threshold=threshold, voxel_ml=voxel_ml)
    image = image_statistics(working.image[0], working.brain, working.spacing_mm)
    return Summary(
        **measured(mask, mean, variance, volume.brain, volume.grid),
        inputs=result.inputs,
        networks=Networks(
            folder=str(trained.folder), profile=trained.of_profile, phantom=phantom, sha256=trained.digests
        ),
        settings=Settings(
            members=sampling.members,
            calls=calls,
            threshold=threshold,
            vote=sampling.vote,
            seed=sampling.seed,
            device=str(ready.device),
        ),
        quality=score_of(trained.quality, origin, agreed, image),
        warnings=result.notes,
        cost=Cost(seconds=round(result.seconds, 2), peak_memory_mb=peak_memory_mb()),
    )


def _say(line: str) -> None:
    print(" ".join(line.split()), file=sys.stderr)
