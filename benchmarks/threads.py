"""What threads cost on a CPU: a network call with one thread and with two, whose idle ones spin or sleep, on an idle
machine and beside a job that keeps one core busy.

OpenMP reads OMP_NUM_THREADS and OMP_WAIT_POLICY when it starts, so each case is a process of its own.
"""

import json
import os
import subprocess
import sys

import pandas as pd

CASES = [(1, "PASSIVE"), (2, "ACTIVE"), (2, "PASSIVE")]
PRECISIONS = ("32-true", "bf16-mixed")
CALL = "--call"
BUSY = "while True: pass"


def call_seconds() -> dict[str, list[float]]:
    """Quartiles of the seconds of a call on a batch in each precision, low first."""
    import torch

    from benchmarks.step import BATCH, INDICES, T, randomise
    from benchmarks.timing import DEVICE, compare, settings
    from pdlib.networks.guided_unet import GuidedUNet
    from pdlib.networks.prepared import PreparedDenoiser

    options, size, _ = settings()
    network = randomise(GuidedUNet(**options))
    x, t = torch.randn(BATCH, 3, *size, device=DEVICE), torch.full((BATCH,), INDICES[0], device=DEVICE)
    denoisers = {precision: PreparedDenoiser(network, T, precision) for precision in PRECISIONS}
    with torch.inference_mode():
        timed = compare({name: lambda denoiser=one: denoiser(x, t) for name, one in denoisers.items()})
    return {name: (timed.loc[name, ["low_s", "median_s", "high_s"]] / BATCH).tolist() for name in denoisers}


def measured(threads: int, policy: str) -> dict[str, list[float]]:
    """`call_seconds` in a process with so many threads and this wait policy."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    command = [sys.executable, "-m", "benchmarks.threads", CALL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from benchmarks.timing import DEVICE, save

    if DEVICE.type != "cpu":
        return
    rows = []
    for beside in ("nothing", "a busy core"):
        job = subprocess.Popen([sys.executable, "-c", BUSY]) if beside != "nothing" else None
        try:
            for threads, policy in CASES:
                for precision, (low, median, high) in measured(threads, policy).items():
                    about = {"beside": beside, "threads": threads, "wait_policy": policy, "precision": precision}
                    rows.append(about | {"median_s": median, "low_s": low, "high_s": high})
        finally:
            if job:
                job.kill()
    save("threads", pd.DataFrame(rows))


if __name__ == "__main__":
    if CALL in sys.argv:
        print(json.dumps(call_seconds()))
    else:
        main()
