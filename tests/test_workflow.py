"""The graph of jobs, one notebook as a job, locks, and what a user's names meet on their way to a job."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from pdlib import workflow
from pdlib.graph import cells_digest, graph, needed, place_of, sections_read
from pdlib.paths import CONFIGS, NOTEBOOKS, ROOT, Layout, alone
from pdlib.profiles import load_profile, profile_names
from pdlib.workflow import NotebookFailed, run_notebook, socket_folder

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
PREPARE = """
import json, os
from pathlib import Path
own = Path(out)
for path in (own / "runs" / profile / "cases.json", own / "results" / profile / "folds.csv"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": data, "out": out, "cwd": os.getcwd(), "wait": os.environ["OMP_WAIT_POLICY"]}))
"""
TRAIN = """
from pathlib import Path
path = Path(out) / "results" / profile / "training" / f"{architecture}_{seed}.csv"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text("dice")
"""
UNKIND = [  # folders within folders: the data, and where to
    (["a folder", "it's", '"no"', "ends in a blank "], ["{x}", "{{wildcard,a+}}", "$HOME", "wmh #2"]),
    (
        ["$(shell touch pwned)", "`touch pwned`", "'; touch pwned; '"],
        ["percent %d", "key: value, [1]", "back\\slash\\"],
    ),
    (["grün ☃", "two\nlines", "-n"], ["a=b&c|d>e<f*?~!", "$(touch pwned)", "{blank} "]),
]


def write_notebook(path: Path, code: str, **parameters) -> None:
    lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cells = [nbformat.v4.new_code_cell(lines, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), path)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone in a folder with an unkind name, whose notebooks 01 and 02 only say what they were told."""
    clone = tmp_path / "my clone #1 {x} it's $HOME"
    shutil.copytree(ROOT / "pdlib", clone / "pdlib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONFIGS, clone / "configs")
    shutil.copytree(NOTEBOOKS, clone / "notebooks")
    for name in ("Makefile", "Snakefile"):
        shutil.copy(ROOT / name, clone / name)
    common = {"profile": "smoke", "fold": None, "out": "", "changes": {}}
    write_notebook(clone / "notebooks" / "01_prepare_data.ipynb", PREPARE, data="", **common)
    write_notebook(
        clone / "notebooks" / "02_train_segmenters.ipynb", TRAIN, architecture="attention_unet", seed=0, **common
    )
    return clone


def with_a_case(folder: Path) -> str:
    """A folder of data that holds a case, whose files nobody reads."""
    folder.mkdir(parents=True)
    (folder / "wmh.nii.gz").touch()
    return str(folder)


MAKE = ["make", "--no-print-directory", "reproduce", "READY=", f"PYTHON={sys.executable}", "CORES=2", "MEASURE=0"]


def make(root: Path, *given: str, **environment: str) -> subprocess.CompletedProcess:
    """`make reproduce` as a user types it."""
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "DATA", "OUT")
    }
    environment = inherited | {"PYTHONPATH": str(root)} | environment
    return subprocess.run([*MAKE, *given], cwd=root, env=environment, capture_output=True, text=True)


def jobs_told(done: subprocess.CompletedProcess) -> dict[str, dict]:
    """What each job of a dry run would be told, by its executed notebook."""
    commands = re.findall(r"^Shell command: (PDLIB_WORKFLOW=1 .*?)$(?=\n(?:\n|\[|Job stats))", done.stdout, re.M | re.S)
    words = [shlex.split(command) for command in commands]
    assert all(one[-4:-2] == ["pdlib.workflow", Path(one[-2]).stem.partition(".")[0]] for one in words) or words
    return {Path(one[-2]).stem: json.loads(one[-1]) for one in words}


# What the user gives is data.
@pytest.mark.parametrize(("data", "out"), UNKIND)
def test_what_arrives_is_what_was_asked(tmp_path, data, out):
    asked = {"data": with_a_case(tmp_path.joinpath("data", *data)), "out": str(tmp_path.joinpath("runs", *out))}
    given = (f"{name.upper()}={path}" for name, path in asked.items())
    done = make(ROOT, "PROFILE=smoke", "DRY=1", "TARGETS=01_prepare_data", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    told = jobs_told(done)["01_prepare_data"]
    assert {key: told[key] for key in asked} == asked and told["profile"] == "smoke"
    assert Path(asked["out"], "runs").is_dir() and os.listdir(tmp_path / "runs") == out[:1]
    assert not list(tmp_path.rglob("pwned")) and not (ROOT / "pwned").exists()


def test_names_in_the_environment_arrive_with_their_blanks(tmp_path):
    data, out = with_a_case(tmp_path / "  data  "), tmp_path / " $(shell touch pwned) "
    done = make(ROOT, "DRY=1", "TARGETS=01_prepare_data", PROFILE="smoke", DATA=data, OUT=str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    told = jobs_told(done)["01_prepare_data"]
    assert (told["data"], told["out"]) == (data, str(out)) and not (ROOT / "pwned").exists()


def test_the_cases_of_a_folder_are_counted_and_one_without_any_is_refused_before_a_plan(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "Utrecht" / "0").mkdir(parents=True)
    (data / "Utrecht" / "0" / "T1.nii.gz").touch()
    asked = "PROFILE=smoke", "DRY=1", "TARGETS=01_prepare_data", f"DATA={data}", f"OUT={out}"
    refused = make(ROOT, *asked)
    ours, makes = refused.stderr.splitlines()
    assert refused.returncode != 0 and ours.startswith(f"make reproduce: DATA={data}: no case found") and makes
    assert not refused.stdout and not out.exists()
    for number in (3, 7):
        with_a_case(data / "Utrecht" / str(number))
    done = make(ROOT, *asked)
    assert done.returncode == 0 and f"2 cases in '{data}'" in done.stdout.splitlines()


def test_a_job_runs_in_an_unkind_clone_into_an_unkind_folder_with_a_long_tmpdir(tmp_path, clone):
    deep, out, data = tmp_path / ("long" * 30), tmp_path / "out {y} #'", with_a_case(tmp_path / 'data $(id) "')
    deep.mkdir()
    asked = f"DATA={data}", f"OUT={out}", "TARGETS=02_train_segmenters.attention_unet_0"
    done = make(clone, "PROFILE=smoke", *asked, TMPDIR=str(deep))
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads((out / "runs" / "smoke" / "cases.json").read_text(encoding="utf-8"))
    here = {"data": data, "out": str(out), "cwd": str(clone / "notebooks"), "wait": "PASSIVE"}
    assert seen == here
    place = Layout(out, "smoke")
    assert place.done("02_train_segmenters.attention_unet_0").exists()
    assert place.executed("01_prepare_data").exists()


# Typos.
@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("PROFILE=smok", "unknown profile 'smok': choose one of cpu, gpu, lesson, night, paper, scan, smoke"),
        ("FOLDS=0 7", "FOLDS=0 7: profile smoke has no fold '7': say all, or of 0, 1, 2, 3, 4"),
        ("DATA=/no/such/folder #1", "DATA=/no/such/folder #1: no such folder"),
        ("CHANGES={chain: {eat: 0.0}}", "chain.eat: no such setting; choose one of "),
        ("CHANGES={chain: {eta: 0.0}", "CHANGES={chain: {eta: 0.0}: expected ',' or '}'"),
        ("CHANGES=eta", "CHANGES=eta: has to be sections of the profile"),
        ("CORES=many", "CORES=many: has to be a number of cores"),
        ("TARGETS=03_train", "TARGETS=03_train: no job '03_train': choose of 01_prepare_data, "),
        ("OUT=/dev/null/out", "OUT=/dev/null/out: Not a directory"),
    ],
)
def test_a_typo_is_refused_in_a_line_also_while_another_run_goes_on(tmp_path, given, told):
    with alone(tmp_path / "runs" / ".lock", "another run"):
        done = make(ROOT, f"OUT={tmp_path}", "PROFILE=smoke", given)
    ours, makes = done.stderr.splitlines()
    assert done.returncode != 0 and ours.startswith("make reproduce: ") and told in ours and "Error 2" in makes
    assert "Traceback" not in done.stdout + done.stderr


# Locks.
def test_who_waits_is_told_for_whom_and_goes_on_afterwards(tmp_path, clone):
    with alone(tmp_path / "out" / "runs" / ".lock", "make reproduce PROFILE=cpu"):
        waiting = subprocess.Popen(
            [*MAKE, "PROFILE=smoke", f"OUT={tmp_path / 'out'}", "TARGETS=01_prepare_data"],
            cwd=clone,
            env=os.environ | {"PYTHONPATH": str(clone)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        line = waiting.stdout.readline()
        assert re.fullmatch(
            r"make reproduce PROFILE=smoke FOLDS=0: waiting for make reproduce PROFILE=cpu "
            rf"\(process {os.getpid()} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\)\n",
            line,
        ), line
        assert waiting.poll() is None
    rest = waiting.communicate(timeout=120)[0]
    assert waiting.returncode == 0, rest


def test_a_lock_of_a_dead_process_is_no_obstacle(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pdlib.paths import alone\n"
        "with alone(Path(sys.argv[1]), 'a run that dies'):\n    print('held', flush=True); time.sleep(60)"
    )
    path = tmp_path / "runs" / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    with alone(path, "a run"):
        assert time.monotonic() - started < 5
    assert not list(path.parent.glob("*.json"))


# What makes a job run again.
def test_jobs_run_again_for_their_code_and_their_settings_alone(tmp_path, clone):
    target, out = "02_train_segmenters.attention_unet_0", tmp_path / "out"
    asked = ("PROFILE=smoke", f"OUT={out}", f"TARGETS={target}")

    def would_run(*more: str) -> set[str]:
        done = make(clone, *asked, "DRY=1", *more)
        assert done.returncode == 0, done.stdout + done.stderr
        return set(jobs_told(done))

    done = make(clone, *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert would_run() == set()

    prepare, train = (clone / "notebooks" / f"{name}.ipynb" for name in ("01_prepare_data", "02_train_segmenters"))
    saved = nbformat.read(prepare, as_version=4)
    saved.cells[1].outputs = [nbformat.v4.new_output("stream", text="seen")]
    saved.cells[1].execution_count = 7
    saved.cells.append(nbformat.v4.new_markdown_cell("a thought"))
    saved.metadata["language_info"] = {"name": "python", "version": "3.99"}
    nbformat.write(saved, prepare)
    smoke = clone / "configs" / "smoke.yaml"
    before = smoke.read_text(encoding="utf-8")
    smoke.write_text(before + "\nvoxel_tolerance: 0.2\n", encoding="utf-8")
    assert would_run() == set(), "outputs and text are no code, and neither reads this setting"
    smoke.write_text(before.replace("learning_rate: 0.005", "learning_rate: 0.004", 1), encoding="utf-8")
    assert would_run() == {target}, "a setting of the training"
    smoke.write_text(before.replace("cases_per_site: 4", "cases_per_site: 5"), encoding="utf-8")
    assert would_run() == {"01_prepare_data", target}, "a setting of the data"
    smoke.write_text(before, encoding="utf-8")

    assert would_run("CHANGES={chain: {eta: 0.0}}") == set(), "networks that the changes leave alone are the profile's"
    assert would_run("CHANGES={segmenters: {fit: {steps: 10}}}") == {"01_prepare_data", target}, "a place of its own"
    assert would_run(f"DATA={with_a_case(tmp_path / 'data')}") == {"01_prepare_data", target}, "other data"

    cells = nbformat.read(train, as_version=4)
    cells.cells[1].source += "\nprint('more')"
    nbformat.write(cells, train)
    assert would_run() == {target}, "code"
    with (clone / "configs" / "phantom.yaml").open("a", encoding="utf-8") as recipe:
        recipe.write("# another thought\n")
    assert would_run() == {"01_prepare_data", target}, "the phantom's recipe"


def test_changed_settings_reach_every_job_and_lie_apart(tmp_path):
    done = make(ROOT, "PROFILE=smoke", "DRY=1", f"OUT={tmp_path}", "CHANGES={chain: {eta: 0.0}}")
    assert done.returncode == 0, done.stdout + done.stderr
    told, changes = jobs_told(done), {"chain": {"eta": 0.0}}
    assert set(told) == set(graph(load_profile("smoke")))
    changed = {name for name, one in told.items() if one.get("changes") == changes}
    own = {name for name in told if name.startswith(("01", "02", "03", "09", "12", "14", "15", "16", "17", "18"))}
    assert changed == set(told) - own and all(not told[name].get("changes") for name in own)
    place = place_of(load_profile("smoke", changes), str(tmp_path))
    assert f"{place.figures.relative_to(tmp_path)}/fig3.png" in done.stdout


def test_settings_that_networks_depend_on_reach_every_job(tmp_path):
    changes = {"seed": 1}
    done = make(ROOT, "PROFILE=smoke", "DRY=1", f"OUT={tmp_path}", f"CHANGES={json.dumps(changes)}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(one["changes"] == changes for one in jobs_told(done).values())


# The graph.
@pytest.mark.parametrize("profile", profile_names())
def test_every_job_waits_for_jobs_of_the_graph_and_for_what_its_notebook_needs(profile):
    profile = load_profile(profile)
    jobs = graph(profile)
    for job, before in jobs.items():
        assert set(before) <= set(jobs) and len(before) == len(set(before))
        after = {one for name in before for one in [name, *jobs[name]]}
        if job.partition(".")[2] == "" or job.startswith("05"):
            missing = set(needed(job.partition(".")[0], profile)) - after
            assert missing <= {"01_prepare_data"}, (job, missing)
    assert {job.partition(".")[0] for job in jobs} <= {path.stem for path in NOTEBOOKS.glob("*.ipynb")}


def test_only_networks_that_a_row_needs_are_trained():
    few = {"comparison": {"methods": ["attention_unet", "ddpm", "pd_ddpm"]}}
    few |= {"fewer_calls": {"starts": ["pd_ddpm", "ddpm"]}, "members": {"agreement_methods": ["ddpm", "pd_ddpm"]}}
    jobs = graph(load_profile("smoke", few))
    assert {job for job in jobs if job.startswith(("02", "03", "12"))} == {
        *("02_train_segmenters.attention_unet_0", "02_train_segmenters.attention_unet_1"),  # 06 compares seeds
        "03_train_ddpm.0",
    }
    whole = load_profile("smoke", {"comparison": {"methods": ["pd_ddpm", "tdpm", "wolleb2021"]}})
    assert {"03_train_ddpm.0", "12_wolleb2021", "17_tdpm_generator"} <= set(graph(whole))
    assert "tdpm" in sections_read("17_tdpm_generator", whole) and "tdpm" not in sections_read("03_train_ddpm.0", whole)


def test_outputs_are_only_those_that_the_profile_asks_for(tmp_path):
    few = {"fundus": None, "comparison": {"methods": ["attention_unet", "ddpm", "pd_ddpm"]}}
    few |= {"fewer_calls": {"starts": ["pd_ddpm", "ddpm"]}, "members": {"agreement_methods": ["ddpm", "pd_ddpm"]}}
    names = "fundus.csv", "tdpm_states.csv", "wolleb2021.csv"
    for changes, expected in (({}, True), (few, False)):
        done = make(ROOT, "PROFILE=smoke", "DRY=1", f"OUT={tmp_path}", f"CHANGES={json.dumps(changes)}")
        assert done.returncode == 0, done.stdout + done.stderr
        own = [name for name in names if name in done.stdout]
        assert own == (list(names) if expected else [])
        assert "scores.png" in done.stdout and "preseg_checkpoints.csv" in done.stdout


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_job_reads_the_sections_that_its_notebook_names(path):
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    profile = load_profile("smoke")
    named = {name for name in re.findall(r"\bprofile\.(\w+)", code) if name in type(profile).model_fields}
    jobs = graph(profile) | {"13_all_folds": []}
    for job in (job for job in jobs if job.partition(".")[0] == path.stem):
        upstream, asked = {job}, [job]
        while asked:
            before = set(jobs[asked.pop()]) - upstream
            upstream |= before
            asked += before
        read = {key.partition(".")[0] for one in upstream for key in sections_read(one, profile)}
        assert named - {"name", "reference", "fold", "machine", "rows", "interval"} <= read, job


def test_one_run_of_many_reads_no_list_of_the_others():
    one, other = load_profile("smoke"), load_profile("smoke", {"sweep": {"t_primes": [300]}})
    assert sections_read("05_sweep_t_prime.300", one) == sections_read("05_sweep_t_prime.300", other)
    assert sections_read("05_sweep_t_prime", one) != sections_read("05_sweep_t_prime", other)
    other = load_profile("smoke", {"fewer_calls": {"starts": ["pd_ddpm"]}})
    assert sections_read("10_fewer_calls.pd_ddpm", one) == sections_read("10_fewer_calls.pd_ddpm", other)


def test_changes_of_data_or_trainings_bring_networks_of_their_own():
    def place(**changes):
        return place_of(load_profile("cpu", changes), "/out")

    assert place() == Layout(Path("/out"), "cpu") and not place(chain={"eta": 0.0}).own_networks
    assert place(denoiser={"t_max": 50}).own_networks and place(seed=1).own_networks
    assert place(chain={"eta": 0.0}).folds == place().folds != place(seed=1).folds
    sampled = place(chain={"eta": 0.0})
    assert sampled.done("03_train_ddpm") == place().done("03_train_ddpm")
    assert sampled.done("08_truncate_both_ends") != place().done("08_truncate_both_ends")
    assert place(chain={"eta": 0.5}).runs != sampled.runs


# One notebook as a job.
@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of notebooks with one job that divides."""
    write_notebook(tmp_path / "divide.ipynb", "print(1 / by)", by=0)
    monkeypatch.setattr(workflow, "NOTEBOOKS", tmp_path)
    return tmp_path


@pytest.mark.fault("bad settings and parameters")
def test_an_unknown_parameter_is_refused_before_anything_runs(notebooks):
    with pytest.raises(ValueError, match=r"divide.ipynb: unknown parameters bye; it has by"):
        run_notebook("divide", notebooks / "runs" / "divide.ipynb", {"bye": 1})
    assert not (notebooks / "runs").exists()


def test_a_failing_notebook_leaves_its_copy_and_a_readable_traceback(notebooks):
    executed = notebooks / "runs" / "divide.ipynb"
    with pytest.raises(NotebookFailed) as failure:
        run_notebook("divide", executed, {"by": 0})
    message = str(failure.value)
    assert message.startswith("divide.ipynb stopped in cell") and str(executed) in message
    assert "ZeroDivisionError: division by zero" in message and "print(1 / by)" in message and "\x1b" not in message
    assert "ZeroDivisionError" in executed.read_text(encoding="utf-8")
    run_notebook("divide", executed, {"by": 4})
    assert "0.25" in executed.read_text(encoding="utf-8")


def test_sockets_lie_in_a_short_folder_of_one_s_own(tmp_path, monkeypatch):
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with socket_folder() as folder:
        assert len(folder) < 80 and oct(os.stat(folder).st_mode & 0o777) == "0o700"
    assert not os.path.exists(folder)


def test_a_digest_of_cells_leaves_out_what_saving_adds(tmp_path):
    write_notebook(tmp_path / "a.ipynb", "print(1)", by=0)
    first = cells_digest(tmp_path / "a.ipynb")
    saved = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    saved.cells[1].outputs = [nbformat.v4.new_output("stream", text="1")]
    saved.cells[1].id, saved.cells[1].metadata["collapsed"] = "another", True
    nbformat.write(saved, tmp_path / "b.ipynb")
    write_notebook(tmp_path / "c.ipynb", "print(2)", by=0)
    assert cells_digest(tmp_path / "b.ipynb") == first != cells_digest(tmp_path / "c.ipynb")


# What a notebook by itself stands on.
def test_a_job_of_the_graph_does_not_wait_for_the_graph(tmp_path, monkeypatch):
    monkeypatch.setenv(workflow.IN_WORKFLOW, "1")
    monkeypatch.setattr(subprocess, "run", lambda *given, **how: pytest.fail("a workflow within a workflow"))
    workflow.require(Layout(tmp_path, "smoke"), load_profile("smoke"), ["03_train_ddpm"])


def test_earlier_notebooks_are_asked_for_with_the_values_as_they_are(tmp_path, monkeypatch):
    profile = load_profile("smoke", {"chain": {"eta": 0.0}})
    place = place_of(profile, str(tmp_path / "out '{x} #"), 2)
    place.cases.parent.mkdir(parents=True)
    place.cases.write_text(json.dumps({"given": True, "root": "/data #2"}), encoding="utf-8")
    place.done("01_prepare_data").parent.mkdir(parents=True)
    place.done("01_prepare_data").touch()
    calls = []
    monkeypatch.delenv(workflow.IN_WORKFLOW, raising=False)
    monkeypatch.setenv("MAKEFLAGS", " -- PROFILE=cpu")
    monkeypatch.setattr(subprocess, "run", lambda command, **how: calls.append((command, how)))
    workflow.require(place, profile, ["01_prepare_data", "03_train_ddpm", "02_train_segmenters.attention_unet_0"])
    ((command, how),) = calls
    assert command[:3] == ["make", "--no-print-directory", "reproduce"] and "MAKEFLAGS" not in how["env"]
    asked = {key: how["env"][key] for key in ("PROFILE", "FOLDS", "OUT", "DATA", "CHANGES", "TARGETS")}
    assert asked.pop("TARGETS") == "03_train_ddpm 02_train_segmenters.attention_unet_0"
    assert yaml.safe_load(asked.pop("CHANGES")) == {"chain": {"eta": 0.0}}
    assert asked == {"PROFILE": "smoke", "FOLDS": "2", "OUT": str(place.out), "DATA": "/data #2"}
    workflow.require(place_of(load_profile("lesson"), str(tmp_path)), load_profile("lesson"), ["01_prepare_data"])
    assert [how["env"]["MEASURE"] for _, how in calls] == ["1", "0"], "a lesson's minute is not worth an estimate"
