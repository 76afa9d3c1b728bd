"""bandit over pdlib: nothing severe, and docs/security.md names all that it remarks on."""

import json
import re
import subprocess
import sys

from pdlib.paths import ROOT

ACCEPTED = {("B108", "pdlib/workflow.py")}  # above low severity: docs/security.md says why


def test_bandit_finds_nothing_but_what_the_page_on_security_names():
    command = [sys.executable, "-m", "bandit", "--quiet", "--recursive", "pdlib", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report = json.loads(done.stdout)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pdlib").rglob("*.py")}
    assert not report["errors"] and {*report["metrics"]} == {"_totals", *modules}, "it has read every module"
    found = report["results"]
    assert {(one["test_id"], one["filename"]) for one in found if one["issue_severity"] != "LOW"} == ACCEPTED
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    assert {one["test_id"] for one in found} == {*re.findall(r"\bB\d{3}\b", page)}
