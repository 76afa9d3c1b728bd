"""What the paper's study costs on a large GPU, before one has run it: `python -m pdlib.study.scale` counts it.

Updates and network calls are counted from the profile (`pdlib.study.work`), operations by running each network once,
hours from what a GPU is said to do and the share of it that such networks reach: measured, or else between two shares.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pdlib.data import phantom
from pdlib.evaluation import records
from pdlib.inference.precision import Compute
from pdlib.paths import BENCHMARKS, CONFIGS, ROOT, SCALE, SHARED_JOBS, Layout
from pdlib.profiles import Profile, load_profile
from pdlib.sections.trainings import Fit
from pdlib.study.cost import look
from pdlib.study.speed import Head, Trial, calls, trials, updates
from pdlib.study.work import Count, stood_on, validations, works

GPUS = {"A100": 312e12, "H100": 989e12}  # multiplications and additions a second, dense bfloat16 (data sheets, SXM)
SHARES = (0.15, 0.40)  # of them that such networks reach: assumed as long as no GPU has run `make bench`
STEP = BENCHMARKS / "bench_step_cuda.csv"
PARTS = {  # of the paper and beyond it: the jobs that make them
    "Fig. 1, Fig. 2, Table 1": "04_compare_methods",
    "Fig. 3 (T')": "05_sweep_t_prime",
    "Fig. 4 (members)": "06_ensemble_size",
    "Table 2": "07_preseg_accuracy",
    "ADDPM": "08_truncate_both_ends",
    "Fewer calls": "10_fewer_calls",
}
SCANS = 170  # of the WMH challenge, 60 for training and 110 for its test
COUNTED = 64  # pixels along both sides of the image that operations are counted on
HALF, SINGLE = 2, 4  # bytes
VOLUME_BYTES = 2 * SINGLE + 3  # of a voxel that a job has read: two images, brain, reference, other pathology
SLICE_BYTES = 3 * SINGLE  # of a pixel of a training slice: two images and the mask
TRAINED_COPIES = 5  # of a network's parameters while it is trained: itself, its gradient, Adam's two, the average
KEPT_COPIES = 5  # on disk: the best, and in the checkpoint itself, the average and Adam's two
PROCESS_BYTES = 2 * 2**30  # of Python, torch and a notebook's kernel


@dataclass(frozen=True)
class Network:
    """What a training's network costs: parameters; operations of an update and of a call on a slice; bytes on a GPU."""

    parameters: int
    update: float
    call: float
    gpu_bytes: float


@dataclass(frozen=True)
class Study:
    """A profile on so many subjects that look like head, in so many folds, with what a network of it costs."""

    profile: Profile
    head: Head
    networks: Mapping[str, Network]
    subjects: int
    case_bytes: float
    folds: int = 1

    def row(self, targets: Sequence[str] = (), only: bool = False) -> dict:
        """What targets cost with all that they stand on (only: without): a row of the table."""
        count = Count(self.profile, self.subjects, self.head.slices)
        work = count.jobs(stood_on(self.profile, targets))
        if only:
            work = {job: work[job] for job in targets}
        whole, once = sum(work.values(), Counter()), sum(job in SHARED_JOBS for job in work)
        found = {"subjects": self.subjects, "folds": self.folds, "jobs": once + self.folds * (len(work) - once)}
        found |= {"update_eflop": self._eflop(whole, "update"), "call_eflop": self._eflop(whole, "call")}
        found["calls"] = self.folds * sum(units for (kind, _), units in whole.items() if kind == "call")
        found["scores"] = self.folds * whole[("score", "")]
        return found | hours(found["update_eflop"] + found["call_eflop"]) | self._room(count, whole)

    def jobs(self) -> dict[str, float]:
        """EFLOP of each job of one fold."""
        work = works(self.profile, self.subjects, self.head.slices)
        one = replace(self, folds=1)
        return {job: one._eflop(units, "update") + one._eflop(units, "call") for job, units in work.items()}

    def _eflop(self, work: Counter, kind: str) -> float:
        each = {name: getattr(network, kind) for name, network in self.networks.items()}
        return self.folds * sum(units * each[name] for (what, name), units in work.items() if what == kind) / 1e18

    def _room(self, count: Count, work: Counter) -> dict:
        """GiB of disk: cases, kept members, networks; of memory, in the job that reads the most subjects."""
        voxels = math.prod(self.head.grid)
        members = sum(kept * count.split(split) for (split, *_), kept in count.kept.items())
        fits = {name: trial.fit for name, trial in trials(self.profile, self.head).items()}
        networks = sum(
            copies(fits[name]) * SINGLE * self.networks[name].parameters * units / fits[name].steps
            for (kind, name), units in work.items()
            if kind == "update"
        )
        fold = members * voxels * HALF + networks
        trained = self.subjects - 2 * count.split("validation")
        read = (trained + count.split("validation")) * voxels * VOLUME_BYTES
        slice_pixels = self.head.slices * self.head.height * self.head.width
        memory = PROCESS_BYTES + read + trained * slice_pixels * SLICE_BYTES
        disk = self.subjects * self.case_bytes + self.folds * fold
        return {"disk_gib": disk / 2**30, "memory_gib": memory / 2**30}


def copies(fit: Fit) -> int:
    """How often a training's parameters lie on disk: KEPT_COPIES, and those of each validation where they are kept."""
    return KEPT_COPIES + (validations(fit) if fit.keep_validated else 0)


def hours(eflop: float) -> dict:
    """Hours of each GPU: of the one that has been measured, or from the quicker share to the slower one."""
    measured = rate(STEP) if STEP.exists() else None
    if measured:
        return {"gpu_hours": eflop * 1e18 / measured / 3600}
    low, high = SHARES
    return {
        f"{gpu.lower()}_hours_{end}": eflop * 1e18 / (peak * share) / 3600
        for gpu, peak in GPUS.items()
        for end, share in (("low", high), ("high", low))
    }


def rate(table: Path) -> float:
    """Operations a second of our quickest step in a table of `make bench`."""
    rows = records.read_table(table)
    return 1e12 * float(rows[rows.system == "pdlib"].tflops.max())


def network_of(trial: Trial) -> Network:
    """What a training's network costs, counted on one small image: convolutions cost the same for each pixel."""
    compute, network = Compute(torch.device("cpu"), "32-true", 1), trial.build()
    small = replace(
        trial, image=(trial.image[0], COUNTED, COUNTED), fit=trial.fit.model_copy(update={"crop": (COUNTED, COUNTED)})
    )
    own, saved = {one.untyped_storage().data_ptr() for one in network.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = sum(one.numel() for one in network.parameters())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        operations = counted(updates(small, network, compute)(1))
    images = trial.fit.batch_size * math.prod(trial.fit.crop) / COUNTED**2
    call = counted(calls(small, network, compute)(1)) / trial.calls
    gpu_bytes = images * sum(saved.values()) + TRAINED_COPIES * SINGLE * parameters
    return Network(parameters, images * operations, call * math.prod(trial.image[1:]) / COUNTED**2, gpu_bytes)


def counted(run: Callable[[], None]) -> float:
    """The multiplications and additions of a run, two for each product that is added."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def table(study: Study) -> pd.DataFrame:
    """Rows of a kind each: network, part (of the paper), point (of the T' sweep), design (another study), job.

    A row of kind job is of the longest job of a notebook, with so many subjects.
    """
    found = [
        {"kind": "network", "name": name, "million_parameters": one.parameters / 1e6}
        | {"tflop_update": one.update / 1e12, "gflop_call": one.call / 1e9, "gpu_gib": one.gpu_bytes / 2**30}
        for name, one in study.networks.items()
    ]
    parts = {name: (job,) for name, job in PARTS.items()} | {"everything": ()}
    found += [{"kind": "part", "name": name} | study.row(targets) for name, targets in parts.items()]
    for t_prime in study.profile.sweep.t_primes:
        row = study.row([f"05_sweep_t_prime.{t_prime}"], only=True)
        found.append({"kind": "point", "name": str(t_prime)} | row)
    for name, (other, targets) in designs(study).items():
        found.append({"kind": "design", "name": name} | other.row(targets))
    for one in (study, replace(study, subjects=SCANS)):
        for notebook, eflop in longest(one.jobs()).items():
            found.append({"kind": "job", "name": notebook, "subjects": one.subjects, "eflop": eflop} | hours(eflop))
    return pd.DataFrame(found)


def longest(jobs: Mapping[str, float]) -> dict[str, float]:
    """Of each notebook that computes with networks, what its longest job takes."""
    found: dict[str, float] = {}
    for job, eflop in jobs.items():
        notebook = job.partition(".")[0]
        found[notebook] = max(eflop, found.get(notebook, 0.0))
    return {notebook: eflop for notebook, eflop in found.items() if eflop}


def designs(study: Study) -> dict[str, tuple[Study, Sequence[str]]]:
    """Fig. 3 with one thing changed at a time, then all scans; which jobs of it count."""
    profile, fig3 = study.profile, [PARTS["Fig. 3 (T')"]]

    def other(changes: Mapping | None = None, **settings) -> Study:
        changed = load_profile(profile.name, changes) if changes else profile
        return replace(study, profile=changed, **settings)

    half = profile.sweep.t_primes[::2]
    return {
        "Fig. 3 as the paper has it": (study, fig3),
        f"T' of {', '.join(map(str, half))} alone": (other({"sweep": {"t_primes": list(half)}}), fig3),
        "10 members": (other({"sweep": {"ensemble_size": 10}}), fig3),
        "5 folds": (other(folds=5), fig3),
        f"{SCANS} subjects": (other(subjects=SCANS), fig3),
        f"{SCANS} subjects x 5 folds x 10 T'": (other(subjects=SCANS, folds=5), fig3),
        f"everything, {SCANS} subjects x 5 folds": (other(subjects=SCANS, folds=5), ()),
    }


def heads(profile: Profile) -> tuple[Head, float]:
    """What a subject looks like on the challenge's grids, from a phantom of each site; bytes of its files."""
    recipe = yaml.safe_load((CONFIGS / "phantom.yaml").read_text(encoding="utf-8"))["phantom"]
    how = {"grid_scale": profile.data.grid_scale, "label2_fraction": profile.data.label2_fraction}
    with TemporaryDirectory() as folder:
        phantom.write_phantom(folder, cases_per_site=1, seed=profile.seed, parameters=recipe, workers=1, **how)
        found, head, _ = look(profile, Layout(Path(folder), profile.name), folder)
        return head, sum(path.stat().st_size for path in Path(folder).rglob("*.nii.gz")) / found


def write_scale(name: str = "paper") -> pd.DataFrame:
    """Write results/scale.csv, and return it."""
    profile = load_profile(name)
    head, case_bytes = heads(profile)
    networks = {name: network_of(trial) for name, trial in trials(profile, head).items()}
    written = table(Study(profile, head, networks, 3 * profile.data.cases_per_site, case_bytes))
    about = {"root": ROOT, "device": "cpu", "seed": profile.seed, "data_fingerprint": "", "phantom": True}
    stamp = records.stamp(**about, profile=name)
    stamp |= {"shares": SHARES, "peaks": GPUS, "head": [head.slices, head.height, head.width], "measured": False}
    stamp |= {"grid": head.grid, "spacing_mm": head.spacing_mm, "case_bytes": case_bytes}
    if STEP.exists():
        stamp |= {"measured": True, "device": records.read_stamp(STEP)["device"]}
    return records.write_table(SCALE, written, stamp)


if __name__ == "__main__":
    print(write_scale().to_string(index=False))
