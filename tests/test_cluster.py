"""`make reproduce CLUSTER=...`: what Snakemake is told, and that its profile names what there is."""

import os
import subprocess

import pytest
import yaml
from snakemake.profiles import ProfileConfigFileParser

from pdlib.graph import graph, rule_name
from pdlib.paths import CLUSTERS, NOTEBOOKS, ROOT
from pdlib.profiles import load_profile
from pdlib.reproduce import Asked, where_jobs_run

WANTS = yaml.safe_load((CLUSTERS / "slurm" / "notebooks.yaml").read_text(encoding="utf-8"))


def asked(tmp_path, **given):
    return Asked.of({"PDLIB_PROFILE": "smoke", "PDLIB_OUT_FOLDER": str(tmp_path / "out"), **given})


def test_every_notebook_has_its_time_and_memory_on_a_cluster():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {*WANTS}
    for notebook, wanted in WANTS.items():
        assert {*wanted} == {"runtime", "mem_mb"}, notebook
        (minutes, more), (megabytes, also) = (wanted[name].split(maxsplit=1) for name in ("runtime", "mem_mb"))
        assert int(minutes) >= 10 and int(megabytes) >= 1000 and more == also == "* attempt", notebook
    with (CLUSTERS / "slurm" / "config.yaml").open(encoding="utf-8") as stream:
        profile = ProfileConfigFileParser().parse(stream)
    assert profile["executor"] == "slurm" and int(profile["retries"]) >= 1 and int(profile["jobs"]) > 1


def test_every_rule_of_the_graph_asks_for_its_own(tmp_path):
    told = where_jobs_run(asked(tmp_path, PDLIB_CLUSTER="slurm"))
    assert told[:3] == ["--profile", str(CLUSTERS / "slurm"), "--set-resources"] and "--cores" not in told
    for job in graph(load_profile("smoke")):
        wanted = WANTS[job.partition(".")[0]]
        assert {f"{rule_name(job)}:{name}={value}" for name, value in wanted.items()} <= {*told}
    assert f"all_folds:runtime={WANTS['13_all_folds']['runtime']}" in told
    few = where_jobs_run(asked(tmp_path, PDLIB_CLUSTER="slurm", PDLIB_CORES="7"))
    assert few[2:4] == ["--jobs", "7"]


def test_without_a_cluster_one_job_at_a_time_has_the_gpu(tmp_path):
    assert where_jobs_run(asked(tmp_path, PDLIB_CORES="3")) == ["--cores", "3", "--resources", "gpu=1"]


def test_a_folder_is_a_cluster_s_own_profile_and_what_is_none_is_refused(tmp_path):
    own = tmp_path / "my cluster"
    own.mkdir()
    with pytest.raises(ValueError, match=r"CLUSTER=.*my cluster/config.yaml: no such file"):
        asked(tmp_path, PDLIB_CLUSTER=str(own))
    (own / "config.yaml").write_text("executor: slurm\n")
    assert where_jobs_run(asked(tmp_path, PDLIB_CLUSTER=str(own))) == ["--profile", str(own)]
    with pytest.raises(ValueError, match=r"OUT=.*takes \$ for a variable"):
        asked(tmp_path, PDLIB_CLUSTER=str(own), PDLIB_OUT_FOLDER=str(tmp_path / "$HOME"))


@pytest.mark.parametrize(("given", "installs"), [((), 1), (("READY=", "PYTHON=python"), 0)], ids=["venv", "conda"])
def test_only_our_own_environment_is_given_the_plugin(given, installs):
    command = ["make", "-n", "-o", ".venv/.ready", "reproduce", "CLUSTER=slurm", *given]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("--extra slurm") == installs
