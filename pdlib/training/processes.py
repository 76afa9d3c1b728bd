"""The processes of a training: one on one device, or as many as `fabric run` begins, which share every update."""

import logging
import os
import warnings
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric

from pdlib.training.bank import Batch, SliceBank

if TYPE_CHECKING:
    from pdlib.training.fit import Fit

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it remarks on its settings, in red in a notebook
warnings.filterwarnings("ignore", message="The `srun` command is available")  # as above, where SLURM is installed


def build_fabric(device: torch.device, precision: str) -> Fabric:
    """Lightning's Fabric on this one device; in a process that `fabric run` has begun, on what its options say."""
    if "LT_CLI_USED" in os.environ:
        return Fabric(precision=precision)
    devices = 1 if device.index is None or device.type == "cpu" else [device.index]
    return Fabric(accelerator=device.type, devices=devices, precision=precision)


def share(bank: SliceBank, step: int, fit: "Fit", fabric: Fabric) -> Batch:
    """What this process sees of an update: its share of the same crops and random numbers, however many share them.

    Its dropout is its own, and batch norm sees its images alone. ValueError where the batch cannot be shared equally.
    """
    if fit.batch_size % fabric.world_size:
        raise ValueError(f"batch_size {fit.batch_size}: {fabric.world_size} processes cannot share it equally")
    return bank.draw(step, fit).share(fabric.global_rank, fabric.world_size)
