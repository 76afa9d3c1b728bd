"""`make verify`: whether tables, figures, pages and networks follow from results/, and where each table comes from.

Nothing is trained. A line for each check: same, DIFFERS (which file, and how far), or not checked (why). What the user
gives comes as it was typed, in the environment: PDLIB_PROFILE, unasked every profile with figures, and
PDLIB_OUT_FOLDER.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pandas as pd

from pdlib.evaluation import records
from pdlib.paths import COMMITTED, PAPER_NUMBERS, ROOT, Layout, committed_scores, committed_weights, output_root
from pdlib.profiles import load_profile
from pdlib.report import readme
from pdlib.report.compare import difference
from pdlib.study.committed import DIGITS, SUMS, digests, drawn, scores
from pdlib.study.redraw import IMAGES, Kept, redraw
from pdlib.training.weights import load_weights

SAME, DIFFERS, UNCHECKED = "same", "DIFFERS", "not checked"
PROFILE_FOLDERS = ("fold_*", "all_folds", "changed")  # other runs, below a profile's own
WHOLE = {"git": dict, "packages": dict, "device": str, "seed": int, "data_fingerprint": str, "phantom": bool}
WHOLE |= {"profile": str}  # with `changes`, and the configs/ of the commit, all settings
VERSIONS = ("python", "numpy", "torch")
WITHOUT_DATA = ("bench_*", "run_times", "scale", "faults")  # tables of speed, cost and tests alone


@dataclass(frozen=True)
class Check:
    """What was looked at, what came out, and how far it differs or why it was left out."""

    verdict: str
    what: str
    why: str = ""

    @classmethod
    def of(cls, what: str, difference: str, said: str = "") -> "Check":
        """The same where there is no difference; said: what is worth knowing all the same."""
        return cls(DIFFERS if difference else SAME, what, difference or said)

    def __str__(self) -> str:
        return f"{self.verdict:<11}  {self.what}" + (f": {self.why}" if self.why else "")


def drawings(place: Layout) -> Iterator[Check]:
    """Each table and figure of a fold of a profile beside one made again from its results."""
    about, committed = place.figures.relative_to(place.out), _files(place.figures)
    with tempfile.TemporaryDirectory() as made:
        try:
            kept = Kept.of(place, Path(made))
            version = records.read_stamp(place.folds)["packages"].get("matplotlib")
        except ValueError as error:
            yield Check(DIFFERS, str(about), str(error))
            return
        failed = redraw(kept)
        yield from (Check(DIFFERS, f"{about}, made of {name}", reason) for name, reason in failed.items())
        again = _files(Path(made))
        for name in sorted(committed | again, key=str):
            if name in committed & again:
                far = difference(Path(made) / name, place.figures / name)
                yield Check.of(str(about / name), far + _drawn_by(name, version) * bool(far))
            elif name in again:
                yield Check(DIFFERS, str(about / name), "results/ has its numbers, and it is not there")
            elif shown := _shown(name):
                yield Check(UNCHECKED, str(about / name), f"shows {shown}, which results/ does not hold")
            else:
                yield Check(DIFFERS, str(about / name), "no table in results/ gives it")
    for path in (path for one in PROFILE_FOLDERS[1:] for path in place.shared.figures.glob(one) if place.fold == 0):
        yield Check(UNCHECKED, str(path.relative_to(place.out)), "pooled folds and changed settings are not made again")


def _files(folder: Path) -> set[Path]:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if not any(fnmatch(path.parts[0], one) for one in PROFILE_FOLDERS)}


def _shown(name: Path) -> str:
    """What a figure shows that no table holds; empty for one that a table does, and for a table."""
    stem = name.with_suffix("").as_posix()
    patterns = [one for one in IMAGES if fnmatch(stem, one)] if name.suffix in (".png", ".pdf") else []
    return IMAGES[patterns[0]] if patterns else ""


def _drawn_by(name: Path, version: str | None) -> str:
    here = metadata.version("matplotlib")
    pictured = name.suffix in (".png", ".pdf") and version not in (None, here)
    return f" (matplotlib {version} then, {here} here)" if pictured else ""


def pages() -> Iterator[Check]:
    """Each computed part of README and docs/ beside what figures/ and results/ say now."""
    try:
        parts = readme.parts(readme.quoted(ROOT))
    except (ValueError, OSError) as error:
        yield Check(DIFFERS, "the pages", str(error))
        return
    for page, texts in parts.items():
        written = page.read_text(encoding="utf-8")
        for name, text in texts.items():
            held = f"<!-- {name}: begin -->\n{text}\n<!-- {name}: end -->" in written
            yield Check.of(f"{page.relative_to(ROOT)}, {name}", "" if held else "it says something else: `make readme`")


def stamps(results: Path, repository: Path = ROOT) -> Iterator[Check]:
    """Each table of results/ with its stamp, then each commit that the stamps name.

    repository: whose history has the commits.
    """
    makers: Counter[tuple[str, str]] = Counter()
    for path in sorted(results.rglob("*.csv")):
        what = f"results/{path.relative_to(results)}"
        if path.with_suffix("").suffix[1:].isdigit() and path.with_suffix("").with_suffix(".csv").exists():
            continue  # a long table goes on in it, and one stamp stands for all its files
        if path.name == PAPER_NUMBERS.name and path.parent == results:
            yield Check(UNCHECKED, what, "typed from the paper")
            continue
        try:
            stamp = records.read_stamp(path)
            far = _gaps(stamp, any(fnmatch(path.stem, one) for one in WITHOUT_DATA))
        except ValueError as error:
            stamp, far = {}, str(error).partition(": ")[2]
        if not far:
            makers[stamp["git"]["sha"], stamp["profile"]] += 1
        yield Check.of(what, far, "" if far else _made_by(stamp))
    for path in sorted(results.rglob("*.stamp.json")):
        if not path.with_name(path.name.removesuffix(".stamp.json") + ".csv").exists():
            yield Check(DIFFERS, f"results/{path.relative_to(results)}", "the stamp of a table that is not there")
    yield from (_commit(repository, *maker, count) for maker, count in sorted(makers.items()))


def _gaps(stamp: Mapping, without_data: bool) -> str:
    """What a stamp does not say; empty where it leads back to code, settings, data, seed, versions and device."""
    if lost := [name for name, kind in WHOLE.items() if not isinstance(stamp.get(name), kind)]:
        return f"its stamp does not say: {', '.join(lost)}"
    if not stamp["git"].get("sha"):
        return f"made by unknown code ({stamp['git'].get('reason', 'no reason given')})"
    if stamp["git"].get("dirty") is not False:
        return f"made by {stamp['git']['sha'][:10]} with changes that no commit holds"
    if lost := [name for name in VERSIONS if not stamp["packages"].get(name)]:
        return f"its stamp has no version of: {', '.join(lost)}"
    if not re.fullmatch("[0-9a-f]{64}", stamp["data_fingerprint"]) and (stamp["data_fingerprint"] or not without_data):
        return "its stamp has no fingerprint of the data"
    return "" if stamp["device"] and stamp["profile"] else "its stamp names no device or no profile"


def _made_by(stamp: Mapping) -> str:
    changes = f" with {stamp['changes']}" if stamp.get("changes") else ""
    data = f"data {stamp['data_fingerprint'][:10]}" if stamp["data_fingerprint"] else "no data"
    return (
        f"code {stamp['git']['sha'][:10]}, profile {stamp['profile']}{changes}, {data}, seed {stamp['seed']},"
        f" {stamp['device']}, torch {stamp['packages']['torch']}"
    )


def _commit(repository: Path, sha: str, profile: str, count: int) -> Check:
    """Whether a commit belongs to the history, and has the settings that its tables name."""
    what = f"commit {sha[:10]}, profile {profile}, of {count} table{'s' * (count > 1)}"
    shallow = _git(repository, "rev-parse", "--is-shallow-repository")
    if shallow is None:
        return Check(UNCHECKED, what, "there is no git history here")
    if _git(repository, "merge-base", "--is-ancestor", sha, "HEAD") is None:
        if shallow == "true":
            return Check(UNCHECKED, what, "the clone is shallow, and its history too short to tell")
        return Check(DIFFERS, what, "not in git's history")
    files = [f"configs/{name}.yaml" for name in dict.fromkeys(("paper", profile))]
    for file in files:
        if _git(repository, "cat-file", "-e", f"{sha}:{file}") is None:
            return Check(DIFFERS, what, f"it has no {file}")
    same = _git(repository, "diff", "--quiet", sha, "--", *files) is not None
    return Check(SAME, what, f"in git's history, settings {'as today' if same else 'changed since'}")


def _git(repository: Path, *command: str) -> str | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", repository, *command], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout.strip()


def networks() -> Iterator[Check]:
    """The files of the committed networks, by SHA-256; then their Dice on phantom subjects, scored again, the
    reference's first.
    """
    wrong = {*digests().splitlines()} ^ {*SUMS.read_text(encoding="utf-8").splitlines()}
    names = sorted({line.partition("  ")[2] for line in wrong})
    yield Check.of(str(SUMS.relative_to(ROOT)), f"other files: {', '.join(names)}" if names else "")
    others = {path.parents[1].name for path in COMMITTED.glob("*/*/best.safetensors")}
    for kept_as in ["", *sorted(others)]:
        what, table = f"weights{kept_as and '/'}{kept_as}", committed_scores(kept_as)
        if not committed_weights("denoiser_0", kept_as).exists():
            yield Check(UNCHECKED, what, "no networks come along yet")
            continue
        try:
            profile = load_weights(committed_weights("denoiser_0", kept_as)).card["profile"]
            with tempfile.TemporaryDirectory() as made:
                found = scores(drawn(profile, Path(made), COMMITTED / kept_as))
            yield from rescored(found, records.read_table(table), what)
        except (ValueError, OSError) as error:
            yield Check(DIFFERS, what, str(error))


def rescored(found: pd.DataFrame, printed: pd.DataFrame, what: str) -> Iterator[Check]:
    """Each row's Dice beside the printed: columns method, subject, dice of both. Half precision may change the last of
    DIGITS.
    """
    both = found.merge(printed, on=["method", "subject"], how="outer", suffixes=("", "_printed"))
    for method, rows in both.groupby("method"):
        apart = (rows.dice - rows.dice_printed).abs()
        wrong = "" if (apart <= 10**-DIGITS).all() else f"Dice by up to {apart.max():.2g}"
        if apart.isna().any():
            wrong = f"{int(apart.isna().sum())} of {len(rows)} subjects were scored only then, or only now"
        yield Check.of(f"{what}, {method}", wrong, f"{len(rows)} subjects, Dice within {apart.max():.1g}")


def places(out: Path, asked: str) -> list[Layout]:
    """The folds to look at of a profile, or of each that has figures. ValueError where there are none."""
    found = [asked] if asked else sorted(path.name for path in (out / "figures").glob("*/"))
    folds = [Layout(out, name, fold) for name in found for fold in range(load_profile(name).data.folds)]
    if there := [place for place in folds if place.figures.is_dir()]:
        return there
    raise ValueError(f"{out / 'figures' / asked}: no figures to verify")


def checks(out: Path, asked: str) -> Iterator[Check]:
    """All checks below an output root, of one profile's drawings or of every one's."""
    yield from stamps(out / "results")
    for place in places(out, asked):
        yield from drawings(place)
    if out == ROOT:
        yield from pages()
        yield from networks()
    else:
        yield Check(UNCHECKED, "pages and weights", "they belong to the repository's own results")


def main() -> int:
    """Print a line for each check; 1 where anything differs, and 2, with one line on stderr, where nothing can be
    looked at.
    """
    seen: Counter[str] = Counter()
    try:
        for check in checks(output_root(os.environ.get("PDLIB_OUT_FOLDER", "")), os.environ.get("PDLIB_PROFILE", "")):
            print(check, flush=True)
            seen[check.verdict] += 1
    except (ValueError, OSError) as error:
        print(f"make verify: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{seen[verdict]} {verdict}" for verdict in (SAME, DIFFERS, UNCHECKED)))
    return int(seen[DIFFERS] > 0)


if __name__ == "__main__":
    sys.exit(main())
