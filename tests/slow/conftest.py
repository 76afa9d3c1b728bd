"""The run that the others are held against."""

from pathlib import Path

import pytest
from graph_run import start

from pdlib.evaluation import records
from pdlib.paths import ROOT, layout


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The output root of a smoke run of every job that nobody has killed: two jobs at a time. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    log = folder / "log"
    assert start(folder / "out", log).wait() == 0, log.read_text()[-4000:]
    return folder / "out"


@pytest.fixture(scope="session")
def finished(request, pytestconfig):
    """The output root of a smoke run: what `make test` has left of this very commit, or else `whole`. Read only."""
    left = pytestconfig.cache.get("pdlib/run", "")
    code = records.git_state(ROOT)
    try:
        same = records.read_stamp(layout("smoke", left).folds)["git"] == code and code.get("dirty") is False
    except ValueError:
        same = False
    return Path(left) if same else request.getfixturevalue("whole")
