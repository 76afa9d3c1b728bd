"""Cases in the challenge's layout, painted on the anatomies of label maps: `python -m pdlib.data.head_cases MAPS OUT`.

The folder is a phantom (`phantom`), so a run on it is called one: `make reproduce PROFILE=scan DATA=OUT`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pdlib.data.heads import Head, HeadRecipe, find_heads, posed_head, read_head
from pdlib.data.nifti import CaseError
from pdlib.data.painting import paint_head
from pdlib.data.phantom import CHALLENGE_PART, ranks, write_all
from pdlib.data.phantom_anatomy import PhantomParameters
from pdlib.data.scanner import ANATOMY, Canvas, write_canvas
from pdlib.paths import CONFIGS
from pdlib.progress import tqdm

RECIPE, PHANTOM = CONFIGS / "phantom_heads.yaml", CONFIGS / "phantom.yaml"


def write_head_case(
    root: Path,
    site_index: int,
    case_index: int,
    *,
    maps: Sequence[Path],
    seed: int,
    grid_scale: Sequence[float],
    recipe: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> str:
    """Paint and write one subject, unless it is complete; returns its folder relative to root (POSIX).

    Cases of one index share an anatomy, the map of that number, at every site.
    """
    p, heads = PhantomParameters.from_mapping(parameters), HeadRecipe.from_mapping(recipe)
    site = p.sites[site_index]
    subject = f"{CHALLENGE_PART}/{site.folder}/{site.first_id + case_index}"
    if (Path(root) / subject / "wmh.nii.gz").exists():
        return subject
    rng = np.random.default_rng(np.random.SeedSequence((seed, site_index, case_index)))
    path = maps[case_index % len(maps)]
    head = _read(path, json.dumps(recipe))
    posed = posed_head(rng, head, ranks(seed, site_index, case_index)[0], heads, p)
    painted = paint_head(rng, posed, heads)
    canvas = Canvas(
        painted.flair, painted.t1, painted.brain, posed.anatomy, posed.lesions, np.zeros(posed.tissue.shape, bool)
    )
    scanner = site.model_copy(update={"noise": painted.noise, "bias": heads.look.bias})
    write_canvas(rng, Path(root), subject, canvas, scanner, grid_scale, p, {ANATOMY: path.name})
    return subject


@lru_cache(maxsize=1)
def _read(path: Path, recipe: str) -> Head:
    """A label map, read once for all its sites; recipe: as JSON."""
    return read_head(path, HeadRecipe.from_mapping(json.loads(recipe)))


def write_heads(maps: Path | str, out: Path | str, *, cases: int, seed: int, workers: int) -> None:
    """Write `cases` subjects a site below out, on the anatomies of a folder of label maps, each used in turn.

    CaseError, naming the file, for a map that cannot be used; ValueError for a folder made with other settings.
    """
    found = find_heads(maps)
    recipe, parameters = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (RECIPE, PHANTOM))
    about = {"seed": seed, "grid_scale": [1.0, 1.0, 1.0], "recipe": recipe, "parameters": parameters["phantom"]}
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
    sites = len(PhantomParameters.from_mapping(parameters["phantom"]).sites)
    jobs = [(site, case) for case in range(cases) for site in range(sites)]
    with tqdm(total=len(jobs), unit="case", desc="painted heads") as bar:
        write_all(
            out,
            jobs,
            partial(write_head_case, maps=found, **about),
            about | {"maps": digests},
            workers,
            lambda done, total: bar.update(done - bar.n),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the cases; what cannot be done is told on stderr, and code 2."""
    parser = argparse.ArgumentParser(prog="python -m pdlib.data.head_cases", description=__doc__)
    parser.add_argument("maps", type=Path, help="folder of label maps with FreeSurfer's numbers, 1 mm")
    parser.add_argument("out", type=Path, help="where the cases go")
    parser.add_argument("--cases", type=int, default=40, help="a site (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args(arguments)
    try:
        write_heads(given.maps, given.out, cases=given.cases, seed=given.seed, workers=given.workers)
    except (CaseError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
