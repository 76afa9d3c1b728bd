"""Where things lie: the only file that knows the tree."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
NOTEBOOKS = ROOT / "notebooks"
STYLE = ROOT / "figures" / "paper.mplstyle"
PAPER_NUMBERS = ROOT / "results" / "paper.csv"


@dataclass(frozen=True)
class Layout:
    """The folders of one profile under an output root: runs (ignored by git), results and figures."""

    out: Path
    profile: str

    @property
    def runs(self) -> Path:
        """Checkpoints, samples, executed notebooks."""
        return self.out / "runs" / self.profile

    @property
    def results(self) -> Path:
        """Tidy CSV files, each with its stamp."""
        return self.out / "results" / self.profile

    @property
    def figures(self) -> Path:
        """Pictures and tables, rebuilt from results."""
        return self.out / "figures" / self.profile

    @property
    def cases(self) -> Path:
        """What the first notebook found: the data folder, its fingerprint and its preprocessing."""
        return self.runs / "cases.json"

    @property
    def folds(self) -> Path:
        """The subject-level folds."""
        return self.results / "folds.csv"

    def done(self, job: str) -> Path:
        """The mark that a notebook run has ended. Results alone say nothing: committed ones come without their run."""
        return self.runs / "done" / job

    def weights(self, name: str) -> Path:
        """The folder of one training."""
        return self.runs / "weights" / name

    def presegs(self, name: str) -> Path:
        """The folder of one segmenter's predictions."""
        return self.runs / "presegs" / name

    def samples(self, *names: str) -> Path:
        """The folder of one chain's sampled members."""
        return self.runs.joinpath("samples", *names)


def layout(profile: str, out: str = "") -> Layout:
    """The layout of a profile under out; where that is empty, under $PDLIB_OUT or else the repository."""
    return Layout(Path(out or os.environ.get("PDLIB_OUT") or ROOT).resolve(), profile)


def latest_weights() -> Path:
    """The weights folder whose denoiser was trained last, for `segment`; FileNotFoundError where there is none."""
    runs = Path(os.environ.get("PDLIB_OUT") or ROOT) / "runs"
    found = sorted(runs.glob("*/weights/denoiser/best.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"{runs}: no trained weights; run `make reproduce` or pass --weights")
    return found[-1].parents[1]
