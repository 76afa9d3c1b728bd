"""Counts what tests put in to do harm, and what came of it: a pytest plugin.

A test that puts a fault in says of which kind, `@pytest.mark.fault("full disk")`; one that puts in several says how
many by `record_property("faults", n)`, and for one of hypothesis its examples are counted. A test that fails has lost
them all. The table is printed at the session's end; with `--faults FILE` the rows of the test files that have run are
put in FILE in the place of earlier ones, with the code that they ran.
"""

from collections.abc import Collection
from functools import wraps
from pathlib import Path

import pandas as pd
import pytest

from pdlib.evaluation import records
from pdlib.paths import ROOT
from pdlib.report.faults import by_kind

KINDS = (
    "kill -9",
    "job ended by the cluster",
    "full disk",
    "unwritable folder",
    "interrupted write or computation",
    "out of memory",
    "bad weights",
    "bad settings and parameters",
    "bad images",
    "bad folders of data",
    "misbehaving server",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=Path, metavar="FILE", help="a table of the faults that tests put in (CSV)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (mark := item.get_closest_marker("fault")) is not None:
            (kind,) = mark.args
            if kind not in KINDS:
                raise pytest.UsageError(f"{item.nodeid}: fault {kind!r}: should be one of {', '.join(KINDS)}")
            item.user_properties.append(("fault", kind))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Count the examples of a test of hypothesis, which runs its inner function for each."""
    drawn = getattr(getattr(item, "obj", None), "hypothesis", None)
    if drawn is None or item.get_closest_marker("fault") is None:
        return (yield)
    inner, examples = drawn.inner_test, []

    @wraps(inner)
    def counted(*arguments, **given):
        inner(*arguments, **given)
        examples.append(1)

    drawn.inner_test = counted
    try:
        return (yield)
    finally:
        drawn.inner_test = inner
        item.user_properties.append(("faults", len(examples)))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Tally())


class Tally:
    """What a session's reports say: of each test its kind of fault, how many, and whether it has failed."""

    def __init__(self) -> None:
        self.tests: dict[str, tuple[str, int, bool]] = {}
        self.files: set[str] = set()  # all that have run

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        about = dict(report.user_properties)
        self.files.add(report.nodeid.partition("::")[0])
        if "fault" in about and (report.failed or (report.when == "call" and report.passed)):
            *_, failed = self.tests.get(report.nodeid, (False,))
            self.tests[report.nodeid] = about["fault"], int(about.get("faults", 1)), failed or report.failed

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        if not self.tests:
            return
        table = self.table()
        terminalreporter.section("faults that tests put in")
        terminalreporter.line(by_kind(table).to_string(index=False))
        if config.option.faults:
            add(config.option.faults, table, self.files)

    def table(self) -> pd.DataFrame:
        """Columns: kind, file, tried, survived, lost; a row a kind and test file."""
        rows = [
            {"kind": kind, "file": test.partition("::")[0], "tried": count, "lost": count * failed}
            for test, (kind, count, failed) in self.tests.items()
        ]
        found = pd.DataFrame(rows).groupby(["kind", "file"], as_index=False).sum()
        return found.assign(survived=found.tried - found.lost)


def add(path: Path, table: pd.DataFrame, ran: Collection[str]) -> None:
    """Put rows into a table on disk, with the code that they are of, in the place of those of all files that ran."""
    about = {"device": "cpu", "seed": 0, "data_fingerprint": "", "phantom": True, "profile": "smoke"}
    stamp = records.stamp(root=ROOT, **about)
    table = table.assign(code=code_of(stamp["git"]))
    if path.exists():
        earlier = records.read_table(path)
        table = pd.concat([earlier[~earlier.file.isin(ran)], table])
    order = table.kind.map(KINDS.index)
    records.write_table(path, table.assign(order=order).sort_values(["order", "file"]).drop(columns="order"), stamp)


def code_of(git: dict) -> str:
    """A commit's first digits after a g, as git describes it, and a + where the sources were others than its own."""
    return (f"g{git['sha'][:10]}" if git["sha"] else "unknown") + "+" * bool(git.get("dirty"))
