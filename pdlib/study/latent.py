"""Latent diffusion: the auto-encoder of masks and what it loses, the denoiser of its codes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pdlib.diffusion.codec import Codec, build_codec
from pdlib.diffusion.latent import LatentCodec, latent_codec, latent_diffusion, measure_codes
from pdlib.diffusion.sampler import Diffusion, Sampler, preseg_start
from pdlib.evaluation import metrics
from pdlib.inference.chains import chain_of
from pdlib.inference.slices import counted, silent
from pdlib.inference.window import Window
from pdlib.kernels.noise import Streams
from pdlib.methods import METHODS
from pdlib.networks.autoencoder import MaskAutoencoder
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.study.comparison import Row
from pdlib.study.pictures import WidestSlice
from pdlib.study.rows import ensemble_of
from pdlib.study.run import Run
from pdlib.study.trainings import seeded, training
from pdlib.study.validation import mean_dice, sampled_dice
from pdlib.training.bank import SliceBank
from pdlib.training.fit import fit_network
from pdlib.training.objectives import diffusion_objective, reconstruction_objective
from pdlib.training.weights import load_weights, write_weights

AUTOENCODER, DENOISER = "autoencoder", "latent"  # the two trainings
SCORES = ["dice", "lesion_f1"]


def train_autoencoder(run: Run, bank: SliceBank) -> pd.DataFrame:
    """Train the auto-encoder on the masks of a bank; returns its history.

    It is chosen by the Dice of validation references, encoded and decoded. Scale and range of the training masks' codes
    are measured once it is trained, and kept in its card under "codes".
    """
    settings = run.profile.latent.autoencoder
    network, subjects = settings.network.arguments(), run.subjects("validation")
    card = {"kind": "autoencoder", "network": network, "positive_weight": settings.positive_weight}
    how = training(run, AUTOENCODER, settings.fit, card)

    def watch(average: nn.Module) -> dict[str, float]:
        codec = latent_codec(average, 1.0, (-np.inf, np.inf))
        masks = (reconstructed(run, codec, subject, run.volume(subject).mask) for subject in subjects)
        return {"dice": mean_dice(run, subjects, masks)}

    objective = reconstruction_objective(settings.positive_weight)
    history = fit_network(seeded(MaskAutoencoder, run.seed, **network), objective, bank, watch, how)
    weights = load_weights(how.best)
    deviation = deviation_of_codes(run, bank, settings.deviation)
    codes = measure_codes(weights.build(torch.device("cpu"), "autoencoder"), bank.masks, deviation)
    write_weights(how.best, weights.tensors, {**weights.card, "codes": codes})
    return history


def deviation_of_codes(run: Run, bank: SliceBank, deviation: str) -> float:
    """What the codes of a bank's masks are scaled to: "unit", or what the "masks" have in the chain of masks."""
    if deviation == "unit":
        return 1.0
    codec = build_codec(run.profile.denoiser.diffusion.codec)
    return float(torch.cat([codec.encode(mask).flatten() for mask in bank.masks]).std())


def codec_of(run: Run) -> LatentCodec:
    """The codec of this run's trained auto-encoder."""
    weights = run.weights(AUTOENCODER)
    return latent_codec(run.network(weights, "autoencoder"), **weights.card["codes"])


def diffusion_of_codes(run: Run) -> Diffusion:
    """What the denoiser of this run's codes is trained with."""
    return latent_diffusion(_about(run), run.network(run.weights(AUTOENCODER), "autoencoder"))


def diffusion_at(run: Run, bank: SliceBank, deviation: str) -> Diffusion:
    """The same with codes of another deviation, of which `deviation_of_codes` knows."""
    trained = run.weights(AUTOENCODER).build(torch.device("cpu"), "autoencoder")
    codes = measure_codes(trained, bank.masks, deviation_of_codes(run, bank, deviation))
    diffusion = diffusion_of_codes(run)
    return replace(diffusion, codec=replace(diffusion.codec, scale=codes["scale"], clamp=tuple(codes["clamp"])))


def _about(run: Run) -> dict:
    """The same as its card has it: the schedule is that of the denoiser of masks."""
    own = {"codec": "latent", "prediction": run.profile.latent.prediction}
    return run.profile.denoiser.diffusion.arguments() | own | run.weights(AUTOENCODER).card["codes"]


def train_denoiser(run: Run, bank: SliceBank) -> pd.DataFrame:
    """Train the denoiser of codes; returns its history. As that of masks, it is chosen by chains from pure noise."""
    settings, diffusion = run.profile.latent, diffusion_of_codes(run)
    steps, network = diffusion.schedule.steps, settings.network.arguments()
    watched = run.spread("validation", settings.validation_subjects)
    chain = chain_of(METHODS["ddpm"], run.profile.chain, steps)
    card = {"kind": "denoiser", "network": network, "diffusion": _about(run), "t_max": steps}
    card |= {"autoencoder": run.weights(AUTOENCODER).digest, "watched": watched, "chosen_by": vars(chain)}

    def watch(average: nn.Module) -> dict[str, float]:
        return sampled_dice(run, Sampler(run.prepare(average, steps), diffusion, chain), watched)

    return fit_network(
        seeded(GuidedUNet, run.seed, **network),
        diffusion_objective(diffusion, steps),
        bank,
        watch,
        training(run, DENOISER, settings.fit, card),
    )


def reconstructed(run: Run, codec: Codec, subject: str, mask: np.ndarray) -> np.ndarray:
    """A mask of a subject, encoded and decoded as a chain does it: [Z, Y, X] -> [Z, Y, X] in 0..1."""
    codec = counted(codec, run.compute, silent)
    return _by_slices(run, subject, mask, lambda x, streams: codec.decode(codec.encode(x)))


def read_back(run: Run, diffusion: Diffusion, subject: str, mask: np.ndarray, index: int) -> np.ndarray:
    """What a chain's start at an index tells of its mask by itself: decode(x_t / sqrt(abar_t)); see `reconstructed`.

    Neither image nor network helps: what is lost here is what the network has to find again.
    """
    codec, signal = counted(diffusion.codec, run.compute, silent), float(diffusion.schedule.abar(index).sqrt())
    diffusion = replace(diffusion, codec=codec)
    read = lambda x, streams: codec.decode(preseg_start(x, index, streams, diffusion) / signal)  # noqa: E731
    return _by_slices(run, subject, mask, read)


@torch.inference_mode()
def _by_slices(run: Run, subject: str, mask: np.ndarray, read: Callable[[Tensor, Streams], Tensor]) -> np.ndarray:
    brain, device = run.volume(subject).brain, run.compute.device
    window = Window.around(brain, run.profile.data.multiple)
    numbers = torch.from_numpy(window.slices)
    streams = run.subject(subject).streams(numbers, torch.zeros_like(numbers))
    x = torch.from_numpy(window.cut(mask.astype(np.float32)))[:, None]  # [N, 1, H, W]
    parts = torch.arange(len(x)).split(run.compute.batch_size)
    masks = [read(x[part].to(device), streams[part].to(device)).cpu() for part in parts]
    return window.put_back(torch.cat(masks)[:, 0].numpy(), brain.shape) * brain


def ceiling(run: Run, codec: Codec, starts: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """What the auto-encoder keeps of the masks of subjects, through the hard threshold: no chain of codes does better.

    starts: their pre-segmentations. Columns: subject, mask, beside, dice, lesion_f1: `mask` is encoded and decoded, or
    not, and scored `beside` the reference or beside itself.
    """
    rows = []
    for subject, preseg in starts.items():
        volume, labels = run.volume(subject), run.labels(subject)
        kept, began = (
            reconstructed(run, codec, subject, one) >= run.profile.ensemble.threshold for one in (volume.mask, preseg)
        )
        for mask, beside, truth, shown in (
            ("reference, reconstructed", "the reference", labels, kept),
            ("pre-segmentation, reconstructed", "itself", preseg.astype(np.uint8), began),
            ("pre-segmentation", "the reference", labels, preseg != 0),
            ("pre-segmentation, reconstructed", "the reference", labels, began),
        ):
            scores = metrics.score_volume(truth, shown, volume.spacing_mm)
            rows.append({"subject": subject, "mask": mask, "beside": beside, **{name: scores[name] for name in SCORES}})
    return pd.DataFrame(rows)


def told_by_the_start(
    run: Run, diffusions: Mapping[str, Diffusion], parts: Sequence[float], subjects: Sequence[str]
) -> pd.DataFrame:
    """Mean Dice of references as `read_back` reads them from chains that start at parts of their T: a row each."""
    found = {}
    for name, diffusion in diffusions.items():
        for part in parts:
            index = round(part * diffusion.schedule.steps) - 1
            masks = (read_back(run, diffusion, one, run.volume(one).mask, index) for one in subjects)
            found[part, name] = mean_dice(run, subjects, masks)
    return pd.Series(found).unstack().rename_axis("t / T")[[*diffusions]]


def likeness(row: Row, subjects: Sequence[str]) -> float:
    """Mean Dice of the ensembles of a row with the pre-segmentations that they start from, where it is defined."""
    found = []
    for subject in subjects:
        mask = ensemble_of(row.run, row.members(subject).values).mask
        start = row.starts(subject, 1).values[0].astype(np.uint8)
        found.append(metrics.score_volume(start, mask, row.run.volume(subject).spacing_mm)["dice"])
    return float(np.nanmean(found))


@torch.inference_mode()
def code_pictures(run: Run, codec: LatentCodec, subject: str) -> dict[str, np.ndarray]:
    """The widest slice's reference, the channels of its code (black: lowest, grey: zero) and its reconstruction."""
    mask = WidestSlice.of(run, subject).tensor(run.volume(subject).mask).to(run.compute.device)
    code = codec.encode(mask)
    channels = (code[0] / (2 * code.abs().max()) + 0.5).cpu().numpy()
    shown = {f"code, channel {i + 1}": channel for i, channel in enumerate(channels)}
    return {"reference": mask[0, 0].cpu().numpy(), **shown, "decoded": codec.decode(code)[0, 0].cpu().numpy()}
