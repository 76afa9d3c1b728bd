"""Training slices with a pre-segmentation beside each reference."""

from collections.abc import Mapping

import numpy as np
import torch

from pdlib.inference.window import brain_slices
from pdlib.study.run import Run
from pdlib.training.bank import SliceBank


def slices_with_presegs(run: Run, presegs: Mapping[str, np.ndarray]) -> SliceBank:
    """All brain slices of the training subjects; the masks' two channels are reference and pre-segmentation.

    presegs holds each subject's hard mask, [Z, Y, X]. Crops and flips are the same for image and both masks.
    """
    images, masks = [], []
    for subject in run.subjects("train"):
        volume = run.volume(subject)
        image, window = brain_slices(volume, 1)
        pair = np.stack([window.cut(volume.mask), window.cut(presegs[subject])], axis=1)  # [N, 2, H, W]
        images += list(image)
        masks += list(torch.from_numpy(pair).float())
    return SliceBank(images, masks)
