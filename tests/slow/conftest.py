"""The run that the others are held against."""

import pytest
from graph_run import start


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The output root of a smoke run of every job that nobody has killed: two jobs at a time. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    log = folder / "log"
    assert start(folder / "out", log).wait() == 0, log.read_text()[-4000:]
    return folder / "out"
