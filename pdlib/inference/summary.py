"""What `segment` reports of one patient: the content of report.json, typed, with a JSON schema.

`Summary(**measured(...), inputs=..., networks=..., ...)` makes it, `Summary.text` is the file, and `report.page` makes
a page of it. `python -m pdlib.inference.summary` writes the schema anew.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, computed_field
from scipy import ndimage

from pdlib.data.nifti import CaseError, Grid, printable
from pdlib.evaluation.metrics import CONNECTED_26
from pdlib.evaluation.quality import FILE, Origin, Quality
from pdlib.paths import DOCS, open_regular, write_whole

REPORT = "report.json"
SCHEMA = DOCS / "report.schema.json"
NOTICE = "This is no medical finding: do not use it for diagnosis or treatment."
PHANTOM_NOTICE = "The networks were trained on simulated heads (a phantom), never on patients. " + NOTICE

NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Point = tuple[float, float, float]
Row = tuple[float, float, float, float]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputFile(_Part):
    """A file that was given."""

    file: str
    sha256: Digest

    @classmethod
    def read(cls, path: Path | str) -> "InputFile":
        """Hash a file; CaseError naming it where it cannot be read."""
        try:
            with open_regular(Path(path)) as stream:
                return cls(file=printable(path), sha256=hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise CaseError.of(path, f"cannot be read ({error.strerror})") from error


class Networks(_Part):
    """The networks used."""

    folder: str
    profile: str | None = Field(description="whose networks these are; null for a folder that was named")
    phantom: bool = Field(description="trained on simulated heads")
    sha256: dict[str, Digest] = Field(description="of each weights file, its card included, by its training's name")


class Settings(_Part):
    """How the mask was made."""

    members: Annotated[int, Field(ge=1)] = Field(description="of the ensemble")
    calls: Annotated[int, Field(ge=1)] = Field(description="network calls of a member on a slice")
    threshold: Share = Field(description="of the probability, from which a voxel is lesion")
    vote: Literal["soft", "majority"] = Field(description="soft: of the mean; majority: of each member")
    seed: int
    device: str


class FileGrid(_Part):
    """The grid of the FLAIR's file, and of every image that is written."""

    shape: tuple[Count, Count, Count] = Field(description="voxels along the file's axes i, j, k")
    voxel_mm: Point = Field(description="along i, j, k")
    axes: str = Field(pattern="^[LRAPSI]{3}$", description="where i, j and k lead, such as RAS")
    affine: tuple[Row, Row, Row, Row] = Field(description="voxel (i, j, k) to scanner mm (right, anterior, superior)")

    @classmethod
    def of(cls, grid: Grid) -> "FileGrid":
        sizes, axes = voxel_sizes(grid.affine).tolist(), "".join(aff2axcodes(grid.affine))
        return cls(shape=grid.shape, voxel_mm=sizes, axes=axes, affine=grid.affine.tolist())


class Volumes(_Part):
    """What was measured of the whole."""

    lesion_ml: NonNegative
    lesion_count: Count
    brain_ml: NonNegative


class Lesion(_Part):
    """A 26-connected component of the mask."""

    centre_mm: Point = Field(description="of mass, in scanner mm: right, anterior, superior")
    centre_voxel: Point = Field(description="the same in voxels (i, j, k) of the file, counted from 0")
    ml: NonNegative
    mm3: NonNegative
    slices: tuple[int, int] = Field(description="first and last, counted from 1 at the feet, as on the page")
    mean_probability: Share
    mean_uncertainty: NonNegative = Field(description="the members' variance, averaged over the lesion's voxels")


class Score(_Part):
    """How good the mask may be, with what that means."""

    predicted_dice: Share | None = Field(description="with an expert's mask; null where it cannot be said")
    means: str = Field(description="what the number says, or why there is none")
    mean_error: NonNegative | None = Field(description="of predicted Dice, of subjects left out of the fit")
    correlation: float | None = Field(description="of predicted and true Dice, of subjects left out of the fit")
    correlation_interval: tuple[float, float] | None
    do_not_trust: bool | None = Field(description="the input lies outside of what was trained on; null: not known")
    reasons: tuple[str, ...] = Field(description="why not to trust the mask")


class Cost(_Part):
    """What it took; all that differs between two runs on the same input."""

    seconds: NonNegative
    peak_memory_mb: NonNegative | None = Field(description="of the process since it began; null: not known")


class Summary(_Part):
    """The report of one patient's segmentation by pdlib."""

    report_format: Literal[1] = 1
    pdlib: str = Field(default_factory=lambda: metadata.version("pdlib"), description="the version")
    inputs: dict[str, InputFile] = Field(description="by role")
    networks: Networks
    settings: Settings
    grid: FileGrid
    volumes: Volumes
    quality: Score
    warnings: tuple[str, ...] = Field(description="what is doubtful about the input")
    lesions: tuple[Lesion, ...] = Field(description="largest first")
    cost: Cost

    @computed_field
    @property
    def notice(self) -> str:
        """How far to go by it."""
        return PHANTOM_NOTICE if self.networks.phantom else NOTICE

    @property
    def text(self) -> str:
        """The content of report.json."""
        return json.dumps(self.content, indent=2, ensure_ascii=False) + "\n"

    @property
    def content(self) -> dict[str, Any]:
        """The same as JSON's own types, for `report.page`."""
        return self.model_dump(mode="json")

    @classmethod
    def schema_text(cls) -> str:
        """The JSON schema of report.json."""
        return json.dumps(cls.model_json_schema(mode="serialization"), indent=2) + "\n"


def measured(mask: NDArray, mean: NDArray, variance: NDArray, brain: NDArray, grid: Grid) -> dict[str, Any]:
    """The parts grid, volumes and lesions of a summary. All arrays [Z, Y, X], on the canonical axes of the grid."""
    lesions = find_lesions(mask, mean, variance, grid)
    voxel_ml = float(np.prod(grid.spacing_mm)) / 1000
    lesion_ml, brain_ml = (round(np.count_nonzero(one) * voxel_ml, 6) for one in (mask, brain))
    volumes = Volumes(lesion_ml=lesion_ml, lesion_count=len(lesions), brain_ml=brain_ml)
    return {"grid": FileGrid.of(grid), "volumes": volumes, "lesions": lesions}


def find_lesions(mask: NDArray, mean: NDArray, variance: NDArray, grid: Grid) -> tuple[Lesion, ...]:
    """The 26-connected lesions of a mask [Z, Y, X], largest first, with the ensemble's mean and variance in each."""
    labels, count = ndimage.label(mask, CONNECTED_26)
    if count == 0:
        return ()
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(labels.ravel())[1:]
    centres = np.array(ndimage.center_of_mass(mask != 0, labels, numbers))[:, ::-1]  # [lesions, (x, y, z)]
    centres_mm = apply_affine(grid.canonical_affine, centres)
    centres_voxel = apply_affine(np.linalg.inv(grid.affine), centres_mm)
    within = [ndimage.mean(values.astype(float), labels, numbers) for values in (mean, variance)]
    along_z = [box[0] for box in ndimage.find_objects(labels)]
    voxel_mm3 = float(np.prod(grid.spacing_mm))
    return tuple(
        Lesion(
            centre_mm=np.round(centres_mm[k], 2).tolist(),
            centre_voxel=np.round(centres_voxel[k], 2).tolist(),
            ml=round(sizes[k] * voxel_mm3 / 1000, 6),
            mm3=round(sizes[k] * voxel_mm3, 3),
            slices=(along_z[k].start + 1, along_z[k].stop),
            mean_probability=round(min(within[0][k], 1.0), 6),
            mean_uncertainty=round(within[1][k], 6),
        )
        for k in np.argsort(-sizes, kind="stable")
    )


def score_of(
    quality: Quality | None, origin: Origin, agreement: Mapping[str, float], image: Mapping[str, float]
) -> Score:
    """The score of a mask from the fitted quality beside its networks (None: there is none).

    origin: how this ensemble was made; agreement and image: its features, of the functions of `evaluation.quality`.
    Where the ensemble is of another kind than those of the fit, only the image is judged.
    """
    if quality is None:
        return _no_score(
            f"No score: these networks come without {FILE}, which is fitted to cases with an expert's mask.", None, ()
        )
    if differences := quality.origin.differences(origin):
        said = f"No score: it was fitted on ensembles of another kind ({'; '.join(differences)})."
        return _no_score(said, quality, quality.outside(image))
    reasons = quality.outside({**agreement, **image})
    if np.isnan(predicted := quality.predict(agreement)):
        why = "no lesion was found" if np.isnan(agreement["log10_ml"]) else "a single member has nobody to agree with"
        return _no_score(f"No score: {why}.", quality, reasons)
    held_out = quality.held_out
    interval = None if held_out.low is None else (held_out.low, held_out.high)
    return Score(
        predicted_dice=round(predicted, 4),
        means=_meaning(quality),
        mean_error=held_out.mean_error,
        correlation=held_out.correlation,
        correlation_interval=interval,
        do_not_trust=bool(reasons),
        reasons=reasons,
    )


def peak_memory_mb() -> float | None:
    """The most memory that this process has held so far, in MB (10^6 bytes); None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # its own peak; what getrusage says may be that of the process it was started from
        peak = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _no_score(means: str, quality: Quality | None, reasons: tuple[str, ...]) -> Score:
    nothing = dict.fromkeys(("predicted_dice", "mean_error", "correlation", "correlation_interval"))
    return Score(**nothing, means=means, do_not_trust=None if quality is None else bool(reasons), reasons=reasons)


def _meaning(quality: Quality) -> str:
    heads = "simulated heads" if quality.origin.phantom else "patients"
    found = quality.held_out
    return (
        "The Dice that this mask would have with an expert's (1: the same voxels, 0: none in common), predicted from"
        f" how far the ensemble's members agree. It was fitted on {found.subjects} {heads}; left out of the fit, their"
        f" Dice was missed by {found.mean_error:.2f} on average."
    )


if __name__ == "__main__":
    write_whole(SCHEMA, Summary.schema_text())
