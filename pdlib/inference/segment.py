"""A segmentation for a person: two image files in; mask, mean, uncertainty and an overlay out."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

from pdlib.data import wmh
from pdlib.diffusion.sampler import Chain
from pdlib.diffusion.schedule import scale_t_prime
from pdlib.inference.volumes import (
    build_diffusion,
    combine,
    draw_member,
    fast_precision,
    load_denoiser,
    load_segmenter,
    sample_members,
)
from pdlib.paths import latest_weights
from pdlib.report import figures


def segment_files(
    flair: Path, t1: Path, out: Path, weights: Path | None = None, brain_mask: Path | None = None
) -> dict[str, Path]:
    """Segment one patient with PD-DDPM; write mask, mean, uncertainty (NIfTI, the FLAIR's grid) and overlay (PNG).

    weights is a folder that holds `denoiser/` and the pre-segmenter it names; by default that of the last run. Images
    whose in-plane voxels are far from those of the training are resampled to them, and the prediction back.
    Returns the weights used and what was written. ValueError or FileNotFoundError, naming the file, for unusable input
    or weights.
    """
    weights = latest_weights() if weights is None else Path(weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = fast_precision(device)
    denoiser, card = load_denoiser(weights / "denoiser" / "best.safetensors", device, precision)
    sampling, data = card["sampling"], card["data"]
    preseg_path = weights / f"{sampling['presegmenter']}_0" / "best.safetensors"
    segmenter, _ = load_segmenter(preseg_path, device)
    volume = wmh.read_images(flair, t1, clip_percentiles=tuple(data["clip_percentiles"]), brain_mask_path=brain_mask)
    working = _to_training_voxels(volume, data["in_plane_mm"], sampling["voxel_tolerance"])
    if working is None:
        raise wmh.CaseError.of(flair, f"voxels of {volume.spacing_mm} mm cannot be brought to those of the training")

    diffusion = build_diffusion(**card["diffusion"])
    t_count = scale_t_prime(sampling["t_prime"], sampling["paper_steps"], diffusion.schedule.steps)
    how = {name: sampling[name] for name in ("stride", "step", "eta", "convention")}
    chain = Chain("preseg", "run_to_zero", t_count, **how)
    size, slices = sampling["ensemble_size"], int(working.brain.any(axis=(1, 2)).sum())
    with tqdm(total=slices * (1 + size * len(chain.indices)), unit="call", desc="network calls on slices") as bar:
        common = {
            "multiple": data["multiple"],
            "batch_size": sampling["batch_size"],
            "precision": precision,
            "on_batch": bar.update,
        }
        common |= {"subject": hashlib.sha256(volume.image.tobytes()).hexdigest(), "seed": sampling["seed"]}
        preseg = draw_member(segmenter, working, member=0, **common).values >= sampling["threshold"]
        members = sample_members(
            denoiser,
            working,
            preseg[None],
            chain=chain,
            diffusion=diffusion,
            one_step=None,
            members=range(size),
            **common,
        ).values
    members = _resize(members, volume.brain.shape[1:], antialias=False) * volume.brain
    ensemble = combine(members, threshold=sampling["threshold"], vote=sampling["vote"])
    out = Path(out)
    volumes = {
        "mask": ensemble.mask.astype(np.uint8),
        "mean": ensemble.mean.astype(np.float32),
        "uncertainty": ensemble.variance.astype(np.float32),
    }
    written = {name: out / f"{name}.nii.gz" for name in volumes}
    for name, values in volumes.items():
        wmh.write_volume(written[name], values, volume.grid, values.dtype)
    note = "networks trained on a phantom" if data["phantom"] else ""
    figure = figures.overlay_figure(
        volume.image, None, ensemble.mask, ensemble.variance, spacing_mm=volume.spacing_mm, columns=6, note=note
    )
    written["overlay"] = out / "overlay.png"
    figure.savefig(written["overlay"], dpi=200)
    if note:
        print(f"{note}: a demonstration, no medical finding", file=sys.stderr)
    return {"weights": weights, **written}


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
