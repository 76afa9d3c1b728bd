"""Where a prepared network's call spends its time: seconds of each of torch's operators, the longest first."""

import pandas as pd
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.step import BATCH, INDICES, T, randomise
from benchmarks.timing import DEVICE, ROUNDS, save, settings
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.prepared import PreparedDenoiser

ACTIVITIES = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE.type == "cuda" else [])]
NAMES = {"aten::_convolution": "aten::mkldnn_convolution"}  # a CPU's transposed one calls no other
SMALL = 0.01  # share of a call: operators below it are added up


def operator_seconds(denoise: PreparedDenoiser, x: torch.Tensor, t: torch.Tensor) -> pd.Series:
    """Seconds of the device in each operator of one call, without those in the operators that it calls."""
    with profile(activities=ACTIVITIES) as seen:
        denoise(x, t)
    operators = [event for event in seen.key_averages() if event.device_type == DeviceType.CPU]
    spent = [one.self_device_time_total if x.is_cuda else one.self_cpu_time_total for one in operators]
    names = [NAMES.get(one.key, one.key) for one in operators]
    return pd.Series(spent, names).groupby(level=0).sum() / 1e6


@torch.inference_mode()
def main() -> None:
    options, size, precision = settings()
    denoise = PreparedDenoiser(randomise(GuidedUNet(**options)), T, precision)
    x, t = torch.randn(BATCH, 3, *size, device=DEVICE), torch.full((BATCH,), INDICES[0], device=DEVICE)
    denoise(x, t)  # chooses convolutions
    rounds = pd.DataFrame([operator_seconds(denoise, x, t) for _ in range(ROUNDS)]).fillna(0.0)
    share = rounds.mean() / rounds.mean().sum()
    rounds["others"] = rounds.loc[:, share < SMALL].sum(axis=1)
    rounds = rounds.loc[:, [*share[share >= SMALL].sort_values(ascending=False).index, "others"]]
    low, median, high = (rounds.quantile(q) for q in (0.25, 0.5, 0.75))
    table = pd.DataFrame({"median_s": median, "low_s": low, "high_s": high}).rename_axis("operator").reset_index()
    table["share"] = rounds.mean().to_numpy() / rounds.mean().sum()
    save("operators", table.assign(precision=precision, batch=BATCH))


if __name__ == "__main__":
    main()
