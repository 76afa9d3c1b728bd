"""A trained denoiser made ready for the many calls of a chain."""

import copy

import torch
from torch import Tensor, nn

from pdlib.networks.guided_unet import GroupNormSiLU, GuidedUNet, Stage, Upsample


class PreparedDenoiser:
    """A copy of a trained network with everything done once that is the same in every call of a chain.

    The weights are cast to the precision of sampling. The time embedding and the layers after it are computed for every
    index and kept in a table, `modulations`. On a CPU each upsampling is merged with the convolution after it; on a GPU
    no measurement (benchmarks/ops.py) has shown that to be faster.

    Args:
        network: stays as it is.
        steps: the network can be called at indices 0 to steps - 1.
        precision: "bf16-mixed" computes in bfloat16 (for norms see `ops.group_norm_silu`), "32-true" in float32;
            KeyError for any other.
    """

    @torch.no_grad()
    def __init__(self, network: GuidedUNet, steps: int, precision: str):
        self.dtype = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32}[precision]
        self.device = next(network.parameters()).device
        self.network = copy.deepcopy(network).eval()
        per_block = self.network.modulations(torch.arange(steps, device=self.device))
        self.widths = [modulation.shape[1] for modulation in per_block]
        self.modulations = torch.cat(per_block, dim=1).to(self.dtype)  # [steps, sum of widths]
        if self.device.type == "cpu":
            fold_upsampling(self.network)
        for layer in self.network.modules():
            if not isinstance(layer, GroupNormSiLU) and not any(layer.children()):
                layer.to(self.dtype, memory_format=torch.channels_last)
        # What `diffusion.steps` and `inference.slices` learn about this network on a GPU:
        self.graphs: dict = {}  # its captured calls, by the shape of their input
        self.pool = None  # the memory that these share, since only one is replayed at a time
        self.rows: dict = {}  # how many rows fit the GPU's memory, by the shape of one row

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Call the network on [N, in, H, W] at indices t [N]; returns [N, out, H, W] float32."""
        modulations = self.modulations.index_select(0, t).split(self.widths, dim=1)
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return self.network.denoise(x, modulations).float()


def fold_upsampling(network: nn.Module) -> None:
    """Merge each upsampling of a network in place with the convolution after it."""
    for stage in list(network.modules()):
        if isinstance(stage, Stage) and isinstance(stage[-1], Upsample):
            stage[-1] = stage[-1].folded()
