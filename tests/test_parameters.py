"""What papermill may set: each parameter's type and bounds are checked before a kernel starts."""

import json
import math
import os
import signal
import subprocess
import sys

import nbformat
import pytest

from pdlib import graph, workflow
from pdlib.paths import NOTEBOOKS, ROOT
from pdlib.profiles import load_profile, profile_names
from pdlib.workflow import NotebookFailed, check_parameters, run_notebook

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
WRONG = [  # a notebook, what it is given, and the line that refuses it
    ("03_train_ddpm", {"seed": "0"}, "seed: '0': should be a valid integer"),
    ("03_train_ddpm", {"seed": -1}, "seed: -1: should be greater than or equal to 0"),
    ("03_train_ddpm", {"seed": 2**32}, "seed: 4294967296: should be less than or equal to 4294967295"),
    ("03_train_ddpm", {"seed": True}, "seed: True: should be a valid integer"),
    ("03_train_ddpm", {"seed": 1.0}, "seed: 1.0: should be a valid integer"),
    ("03_train_ddpm", {"seed": None}, "seed: None: should be a valid integer"),
    ("03_train_ddpm", {"fold": 5}, "fold 5: profile lesson has folds 0 to 3"),
    ("03_train_ddpm", {"fold": -1}, "fold: -1: should be greater than or equal to 0"),
    ("03_train_ddpm", {"fold": "__import__('os')"}, "fold: \"__import__('os')\": should be a valid integer"),
    ("03_train_ddpm", {"profile": "smok"}, "unknown profile 'smok': choose one of cpu, "),
    ("03_train_ddpm", {"profile": ["smoke"]}, "profile: ['smoke']: should be a valid string"),
    ("03_train_ddpm", {"profile": "../../etc/passwd"}, "unknown profile '../../etc/passwd'"),
    ("03_train_ddpm", {"out": 3}, "out: 3: should be a valid string"),
    ("03_train_ddpm", {"out": "a\0b"}, "out: 'a\\x00b': String should match"),
    ("03_train_ddpm", {"out": "\ud800"}, "out: '\\ud800': should be a valid string"),
    ("03_train_ddpm", {"out": "a" * 5000}, "out: 'aaaaaaaaaaaa...aaaaaaaaaaaaa': String should have at most 4096"),
    ("03_train_ddpm", {"changes": "{}"}, "changes: '{}': should be a valid dictionary"),
    ("03_train_ddpm", {"changes": {"chain": {"eat": 1}}}, "profile lesson: chain.eat: no such setting"),
    ("03_train_ddpm", {"changes": {1: 2}}, "changes: {1: 2}: should be a valid string"),
    ("00_tour", {"members": 0}, "members: 0: should be greater than or equal to 1"),
    ("00_tour", {"members": 10**9}, "members: 1000000000: should be less than or equal to 1000"),
    ("01_prepare_data", {"data": "/no/such/folder"}, "data: /no/such/folder: no such folder"),
    ("01_prepare_data", {"data": str(ROOT / "README.md")}, "README.md: no such folder"),
    ("02_train_segmenters", {"architecture": "resnet"}, "architecture: 'resnet': should be 'unet', 'attention_unet'"),
    ("05_sweep_t_prime", {"t_primes": []}, "t_primes: []: Tuple should have at least 1 item"),
    ("05_sweep_t_prime", {"t_primes": [0]}, "t_primes: [0]: should be greater than or equal to 1"),
    ("05_sweep_t_prime", {"t_primes": [300, 1001]}, "t_primes: 1001: exceeds chain.paper_steps 1000"),
    ("05_sweep_t_prime", {"t_primes": 300}, "t_primes: 300: should be a valid tuple"),
    ("05_sweep_t_prime", {"t_primes": [1] * 1001}, "Tuple should have at most 1000 items"),
    ("10_fewer_calls", {"starts": ["pd_ddpm", "no such"]}, "starts: ['pd_ddpm', 'no such']: should be "),
    ("13_all_folds", {"test_folds": [0, 5]}, "fold 5: profile lesson has folds 0 to 3"),
    ("13_all_folds", {"test_folds": []}, "test_folds: []: Tuple should have at least 1 item"),
    ("18_noise_level", {"too_clean": 1.5}, "too_clean: 1.5: should be less than or equal to 1"),
    ("18_noise_level", {"too_clean": math.nan}, "too_clean: nan: should be a finite number"),
    ("18_noise_level", {"too_clean": "0.5"}, "too_clean: '0.5': should be a valid number"),
    ("18_noise_level", ["too_clean"], "parameters ['too_clean']: should be names with their values"),
]


@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize(("name", "given", "told"), WRONG, ids=[f"{one[0][:2]}-{n}" for n, one in enumerate(WRONG)])
def test_a_wrong_parameter_is_one_line_with_notebook_and_name_before_a_kernel_starts(tmp_path, name, given, told):
    with pytest.raises(ValueError) as caught:
        run_notebook(name, tmp_path / "runs" / "executed.ipynb", given)
    line = str(caught.value)
    assert line.startswith(f"{name}.ipynb: ") and told in line and "\n" not in line and len(line) < 500
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault("bad settings and parameters")
def test_several_faults_are_a_line_each(record_property):
    record_property("faults", 3)
    with pytest.raises(ValueError) as caught:
        check_parameters(NOTEBOOKS / "02_train_segmenters.ipynb", {"seed": -1, "architecture": 3, "fold": "x"})
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["fold", "architecture", "seed"]


@pytest.mark.parametrize("profile", profile_names())
def test_whatever_the_graph_asks_of_a_notebook_is_allowed(profile, tmp_path):
    """As the Snakefile words it."""
    asked, own = {"profile": profile, "out": str(tmp_path), "changes": {}}, load_profile(profile)
    for t_prime in (1, *own.sweep.t_primes, own.chain.paper_steps):
        check_parameters(NOTEBOOKS / "05_sweep_t_prime.ipynb", asked | {"fold": own.fold, "t_primes": [t_prime]})
    for start in own.fewer_calls.starts:
        check_parameters(NOTEBOOKS / "10_fewer_calls.ipynb", asked | {"fold": own.data.folds - 1, "starts": [start]})
    for job in graph.graph(own):
        notebook, _, what = job.partition(".")
        if notebook == "02_train_segmenters":
            architecture, _, seed = what.rpartition("_")
            given = asked | {"fold": 0, "architecture": architecture, "seed": int(seed)}
            check_parameters(NOTEBOOKS / f"{notebook}.ipynb", given)
    check_parameters(NOTEBOOKS / "13_all_folds.ipynb", asked | {"test_folds": list(range(own.data.folds))})
    check_parameters(NOTEBOOKS / "01_prepare_data.ipynb", asked | {"data": str(tmp_path)})


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes a notebook of one's own with a parameters cell and a cell of code."""
    monkeypatch.setattr(workflow, "NOTEBOOKS", tmp_path)

    def write(parameters: str, code: str = "") -> None:
        cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(code)], metadata=KERNEL)
        nbformat.write(notebook, tmp_path / "mine.ipynb")
        return tmp_path / "mine.ipynb"

    return write


def test_a_parameter_of_one_s_own_has_the_type_of_its_cell(own):
    notebook = own("by: int = 2\nname = 'a'\nshare: float = 0.5\nlist_of: list = None\nodd = print\nflag = True")
    good = {"by": 3, "name": "b", "share": 1, "list_of": [1], "odd": 3, "flag": False}
    check_parameters(notebook, good)
    check_parameters(notebook, {"list_of": None})
    for name, value in (
        ("by", "3"),
        ("by", True),
        ("name", 1),
        ("share", "x"),
        ("list_of", {}),
        ("flag", 1),
        ("by", None),
    ):
        with pytest.raises(ValueError, match=f"^mine.ipynb: {name}: .*should be like"):
            check_parameters(notebook, {name: value})


def test_what_a_parameters_cell_computes_is_not_run_by_the_check(own, tmp_path):
    check_parameters(own(f"by: int = __import__('os').mkdir({str(tmp_path / 'sprung')!r})"), {"by": 1})
    assert not (tmp_path / "sprung").exists()


def test_text_arrives_in_the_kernel_as_text(own, tmp_path):
    """Quotes, escapes and code in a value, and in a key of a mapping, stay what they are."""
    told = tmp_path / "told.json"
    nasty = "\"'''\\\n{x} $(id) \"\"\"; import os; os.mkdir('sprung') #\u2028☃"
    own(
        "text: str = ''\nmapping: dict = {}",
        f"import json; open({str(told)!r}, 'w').write(json.dumps([text, mapping]))",
    )
    run_notebook("mine", tmp_path / "executed.ipynb", {"text": nasty, "mapping": {nasty: [nasty]}})
    assert json.loads(told.read_text()) == [nasty, {nasty: [nasty]}] and not (tmp_path / "sprung").exists()


@pytest.mark.fault("bad settings and parameters")
def test_a_job_refuses_in_a_line_and_without_a_traceback(tmp_path):
    given = json.dumps({"seed": -1})
    command = [sys.executable, "-m", "pdlib.workflow", "03_train_ddpm", str(tmp_path / "executed.ipynb"), given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("03_train_ddpm.ipynb: seed: -1: should be")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.fault("kill -9")
def test_a_kernel_that_is_killed_is_one_line_and_its_copy_stays_whole(own, tmp_path):
    """As the system does it where memory runs out."""
    own("by: int = 2", f"print('begun', flush=True)\nimport os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    executed = tmp_path / "runs" / "mine.ipynb"
    with pytest.raises(NotebookFailed) as caught:
        run_notebook("mine", executed, {})
    line = str(caught.value)
    assert line.startswith("mine.ipynb: ") and "died" in line and "memory" in line and str(executed) in line
    assert "\n" not in line
    nbformat.validate(nbformat.read(executed, as_version=4))
    own("by: int = 2", "print('again')")
    run_notebook("mine", executed, {})
    assert "again" in executed.read_text(encoding="utf-8")


@pytest.mark.fault("full disk")
def test_a_full_disk_under_a_job_is_one_line_with_the_executed_copy(own, tmp_path):
    own("by: int = 2", "print(*range(100_000), sep='\\n')")
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk]).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(OSError, match="No space left") as caught:
            run_notebook("mine", disk / "mine.ipynb", {})
        assert caught.value.filename == str(disk / "mine.ipynb")
        nbformat.validate(nbformat.read(disk / "mine.ipynb", as_version=4))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
