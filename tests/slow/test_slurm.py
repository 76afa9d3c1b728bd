"""The Snakefile on a real SLURM: one node on this machine, its daemons and their folders the test's own.

`make reproduce CLUSTER=...` runs the T' sweep of the smoke profile there, and a job that the cluster ends is run again.
"""

import getpass
import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest

from pdlib.graph import rule_name
from pdlib.paths import CLUSTERS, ROOT, layout
from pdlib.profiles import load_profile

DAEMONS, PACKAGES = ("munged", "slurmctld", "slurmd"), ("slurm-wlm", "munge")
MEMORY_MB = 1_000_000  # that the node claims to have: jobs ask for what the paper profile takes
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
WITHOUT_ACCOUNTING = """
slurm-status-command: squeue
slurm-init-seconds-before-status-checks: 5
"""
POINTS = [f"05_sweep_t_prime.{t_prime}" for t_prime in load_profile("smoke").sweep.t_primes[:3]]
KILLED = POINTS[1]
PATIENCE = 3000  # seconds, beside other work


def require_slurm():
    """SLURM's daemons and Snakemake's plugin; the test is left out where they are missing and cannot be had."""
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("no snakemake-executor-plugin-slurm: uv pip install --constraint constraints.txt -e '.[slurm]'")
    if not all(map(found, DAEMONS)) and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update"], **quiet)
        subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES], **quiet)
    if missing := [name for name in DAEMONS if not found(name)]:
        pytest.skip(f"no {', '.join(missing)}: as root, apt-get install {' '.join(PACKAGES)}")


def found(program):
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def until(true, what, seconds=60):
    """Wait; the test fails where what it waits for does not come."""
    ends = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < ends, f"{what}: not after {seconds} s"
        time.sleep(0.5)
    return answer


@contextmanager
def daemon(program, *arguments, environment=None):
    process = subprocess.Popen(
        [found(program), *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment in which sbatch, squeue and scancel speak to a new cluster of one node."""
    require_slurm()
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o700)
    munge = folder / "munge"
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    munge.chmod(0o711)
    about = {"host": socket.gethostname(), "user": getpass.getuser(), "folder": folder, "memory": MEMORY_MB}
    about |= {"controller": free_port(), "node": free_port(), "cpus": max(2, os.cpu_count())}
    (folder / "slurm.conf").write_text(CONFIG.format(**about), encoding="utf-8")
    configured = f"SLURM_CONF={shlex.quote(str(folder / 'slurm.conf'))}"
    (folder / "bin").mkdir()
    step = folder / "bin" / "srun"  # within a job the plugin forgets where the cluster's configuration lies
    step.write_text(f'#!/bin/sh\n{configured} exec {found("srun")} "$@"\n', encoding="utf-8")
    step.chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    with ExitStack() as daemons:
        munged = [f"--{option}={munge / name}" for option, name in files.items()]
        daemons.enter_context(daemon("munged", "--foreground", "--force", *munged))
        until((munge / "socket").exists, "munged")
        daemons.enter_context(daemon("slurmctld", "-D", environment=environment))
        daemons.enter_context(daemon("slurmd", "-D", "-N", about["host"], environment=environment))
        until(lambda: "idle" in ask(environment, "sinfo", "-h", "-o", "%t"), f"a node ({folder}/slurmd.log)")
        yield environment
        ask(environment, "scancel", "--user", about["user"])
        until(lambda: not ask(environment, "squeue", "-h"), "the end of the last jobs")


def ask(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def jobs_of(environment, rule):
    """The running jobs of the cluster that are of a rule."""
    told = ask(environment, "squeue", "-h", "-t", "RUNNING", "-o", "%i %k").splitlines()
    return [line.split()[0] for line in told if line.split()[1] == f"rule_{rule}"]


@pytest.mark.fault("job ended by the cluster")
def test_the_sweep_runs_on_slurm_and_outlives_a_job_that_the_cluster_ends(cluster, tmp_path):
    profile, out, log = tmp_path / "my cluster", tmp_path / "it's {x}", tmp_path / "log"
    shutil.copytree(CLUSTERS / "slurm", profile)
    config = (profile / "config.yaml").read_text(encoding="utf-8")
    config = re.sub("^slurm-init.*\n", "", config, flags=re.MULTILINE)
    (profile / "config.yaml").write_text(config + WITHOUT_ACCOUNTING, encoding="utf-8")
    asked = {"PROFILE": "smoke", "CLUSTER": str(profile), "OUT_FOLDER": str(out), "TARGETS": " ".join(POINTS)}
    environment = cluster | {f"PDLIB_{name}": value for name, value in asked.items()}
    rule = rule_name(KILLED)
    with log.open("w") as stream:
        how = {"cwd": ROOT, "env": environment, "stdout": stream, "stderr": subprocess.STDOUT}
        run = subprocess.Popen([sys.executable, "-m", "pdlib.reproduce"], **how)
        try:
            until(lambda: run.poll() is not None or jobs_of(cluster, rule), rule, seconds=PATIENCE)
            assert run.poll() is None, log.read_text()[-4000:]
            (first,) = jobs_of(cluster, rule)
            subprocess.run(["scancel", first], env=cluster, check=True)
            assert run.wait(timeout=PATIENCE) == 0, log.read_text()[-4000:]
        finally:
            run.kill()
    told, place = log.read_text(), layout("smoke", str(out))
    assert re.search(rf"{re.escape(KILLED)} failed;.*{re.escape(KILLED)} is done", told, re.DOTALL)
    assert "] failed:" not in told and told.count(f"{KILLED} starts") == 2
    assert all(place.done(point).exists() for point in POINTS)
    logs = [path.stem for path in out.rglob("*.log") if rule in path.parts[-2]]
    assert logs == [first], "the log of the ended job alone"
