"""A result as one HTML page that a browser opens from the file system: it holds all that it shows and fetches nothing.

Its parts lie in assets/: the template page.html, in which Jinja escapes every text, page.css and page.js.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib import colormaps
from matplotlib.colors import to_hex
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from PIL import Image

from pdlib.data.nifti import Grid
from pdlib.paths import ROOT
from pdlib.report.scene import grey, share_of
from pdlib.report.slices import _brain_box

ASSETS = Path(__file__).parent / "assets"
MOST_SLICES = 64  # on a page; of more, every second one is shown, or every third
MOST_PIXELS = 320  # of a slice's longer side
QUALITY = 80  # of WebP, up to 100
AT_ONCE, MOST_ROWS = 15, 200  # lesions in the table, and with those that a click shows
HEAT = "inferno"
RING_MM = 4.0  # about a lesion that is marked, beyond the radius of a ball of its volume
SHORT = 12  # characters of a digest


def page(
    report: Mapping[str, Any],
    flair: NDArray,
    mask: NDArray,
    variance: NDArray,
    grid: Grid,
    overlay: bytes | None = None,
) -> str:
    """The page of a result: headline, slices with outline and uncertainty, lesions, warnings, settings, citation.

    report: the content of report.json (`inference.summary.Summary.content`). flair (zero outside the brain), mask and
    variance are [Z, Y, X] on the canonical axes of grid; overlay: a picture (PNG) to show as well.
    """
    box = _brain_box(np.abs(flair).max(0))
    height, width = (side.stop - side.start for side in box)
    spacing = grid.spacing_mm
    places, step = _places(flair)
    highest = float(variance.max()) or 1.0
    slices = _slices(flair, mask, share_of(variance, highest), places, box)
    load = np.array([np.count_nonzero(mask[z]) for z in places])
    place = int(load.argmax()) if load.any() else len(places) // 2
    script = (ASSETS / "page.js").read_text(encoding="utf-8")
    return _template().render(
        report=report,
        headline=_headline(report),
        name=next(iter(report["inputs"].values()))["file"],
        style=(ASSETS / "page.css").read_text(encoding="utf-8").replace("var(--heat)", _heat_gradient()),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        slices=json.dumps(slices),
        first=slices[place],
        place=place,
        step=step,
        depth=len(flair),
        load=(load / max(load.max(), 1)).round(3).tolist(),
        highest=highest,
        width_mm=round(width * spacing[2], 2),
        height_mm=round(height * spacing[1], 2),
        pixel_mm=spacing[1:],
        rows=_rows(report["lesions"][:MOST_ROWS], grid, places, box),
        at_once=AT_ONCE,
        overlay=_data_uri(Image.open(io.BytesIO(overlay)).convert("RGB"), "webp", quality=QUALITY) if overlay else None,
        made=_made(report),
        citations=_citations(report["pdlib"]),
    )


def outline(mask: NDArray) -> str:
    """The edge of a mask [H, W] along its pixels' own edges: an SVG path in pixels, the first row at the bottom."""
    padded = np.pad(np.asarray(mask)[::-1] != 0, 1)
    across, along = (padded[1:] != padded[:-1])[:, 1:-1], (padded[:, 1:] != padded[:, :-1])[1:-1].T
    flat = [f"M{start} {line}h{stop - start}" for line, start, stop in _runs(across)]
    upright = [f"M{line} {start}v{stop - start}" for line, start, stop in _runs(along)]
    return "".join([*flat, *upright])


def _runs(edges: NDArray) -> list[tuple[int, int, int]]:
    """Of each run of True along the last axis of edges [N, M]: line, start and stop."""
    steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, stops = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(line), int(start), int(stop)) for (line, start), (_, stop) in zip(starts, stops, strict=True)]


def _places(flair: NDArray) -> tuple[NDArray, int]:
    """The slices to show: those from the first that holds brain to the last, or every step-th; and the step."""
    inside = np.flatnonzero(flair.any(axis=(1, 2)))
    every = np.arange(inside[0], inside[-1] + 1) if len(inside) else np.arange(len(flair))
    step = -(-len(every) // MOST_SLICES)
    return every[::step], step


def _slices(
    flair: NDArray, mask: NDArray, share: NDArray, places: NDArray, box: tuple[slice, slice]
) -> list[dict[str, Any]]:
    """What changes with the slider, a dictionary a slice. share [Z, Y, X] in 0..1: how hot a voxel is."""
    shades = grey(flair[places], flair)[..., 0]
    palette = (255 * colormaps[HEAT](np.arange(256))[:, :3]).astype(np.uint8).tobytes()
    found = []
    for z, shade in zip(places, shades, strict=True):
        heat = _picture(share[z][box])
        heat.putpalette(palette)
        found.append(
            {
                "number": int(z) + 1,
                "flair": _data_uri(_picture(shade[box]), "webp", quality=QUALITY),
                "heat": _data_uri(heat, "png", transparency=bytes(range(256))),
                "outline": outline(mask[z][box]),
            }
        )
    return found


def _picture(values: NDArray) -> Image.Image:
    """Values [H, W] in 0..1 as grey levels, the first row at the bottom."""
    picture = Image.fromarray((255 * values[::-1]).astype(np.uint8))
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return picture


def _data_uri(picture: Image.Image, kind: str, **how) -> str:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **how)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _heat_gradient() -> str:
    """The colours of the uncertainty's scale for CSS; they grow with the square root, as `share_of` has it."""
    ends = np.linspace(0, 1, 9)
    return ", ".join(f"{to_hex(colormaps[HEAT](np.sqrt(end)))} {end:.1%}" for end in ends)


def _rows(
    lesions: Sequence[Mapping[str, Any]], grid: Grid, places: NDArray, box: tuple[slice, slice]
) -> list[dict[str, Any]]:
    """A row of the table for each lesion: with what the report says, where the viewer shows it and rings it (mm)."""
    to_voxel, (_, dy, dx) = np.linalg.inv(grid.canonical_affine), grid.spacing_mm
    rows = []
    for number, lesion in enumerate(lesions, 1):
        x, y, z = apply_affine(to_voxel, lesion["centre_mm"])
        first, last = lesion["slices"]
        rows.append(
            {
                **lesion,
                "number": number,
                "slices": str(first) if first == last else f"{first}–{last}",
                "place": int(np.abs(places - z).argmin()),
                "x": round((x + 0.5 - box[1].start) * dx, 1),
                "y": round((box[0].stop - y - 0.5) * dy, 1),
                "r": round((0.75 * lesion["mm3"] / np.pi) ** (1 / 3) + RING_MM, 1),
            }
        )
    return rows


def _headline(report: Mapping[str, Any]) -> str:
    volumes = report["volumes"]
    if volumes["lesion_count"] == 0:
        return "No lesion found"
    lesions = "lesion" if volumes["lesion_count"] == 1 else "lesions"
    return f"{_ml(volumes['lesion_ml'])} ml in {volumes['lesion_count']} {lesions}"


def _ml(volume: float) -> str:
    """Three digits, or all before the point."""
    return f"{volume:.0f}" if volume >= 100 else f"{volume:.3g}"


def _made(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of everything that the result depends on."""
    settings, grid, networks, cost = (report[name] for name in ("settings", "grid", "networks", "cost"))
    whose = f"profile {networks['profile']}, {networks['folder']}" if networks["profile"] else networks["folder"]
    ensemble = f"{settings['members']} members of {settings['calls']} calls, {settings['vote']} vote"
    voxels = " x ".join(f"{size:.3g}" for size in grid["voxel_mm"])
    memory = "" if cost["peak_memory_mb"] is None else f", at most {cost['peak_memory_mb']:.0f} MB of memory"
    return [
        *((role, f"{one['file']} (SHA-256 {one['sha256'][:SHORT]}…)") for role, one in report["inputs"].items()),
        ("Networks", f"{whose}, trained on {'a phantom' if networks['phantom'] else 'patients'}"),
        *((f"· {name}", f"SHA-256 {digest[:SHORT]}…") for name, digest in networks["sha256"].items()),
        ("Ensemble", f"{ensemble}, threshold {settings['threshold']:g}, seed {settings['seed']}"),
        ("Device", settings["device"]),
        ("Grid", f"{' x '.join(map(str, grid['shape']))} voxels of {voxels} mm, axes {grid['axes']}"),
        ("Took", f"{cost['seconds']:.0f} s{memory}"),
        ("Made by", f"pdlib {report['pdlib']}, report format {report['report_format']}"),
    ]


def _citations(version: str) -> list[tuple[str, str]]:
    """Text and address of what to cite: the software, and the method's paper."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = cited["references"][0]
    authors = ", ".join(f"{one['family-names']} {one['given-names'][0]}" for one in paper["authors"])
    return [
        (f"{cited['authors'][0]['name']}. {cited['title']}. Version {version}.", ""),
        (f"{authors}. {paper['title']}. {paper['year']}.", paper["url"]),
    ]


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ml"] = _ml
    return environment.get_template("page.html")
