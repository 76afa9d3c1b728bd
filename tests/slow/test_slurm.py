"""The Snakefile on a real SLURM: one node on this machine, its daemons and their folders the test's own.

`make reproduce CLUSTER=...` runs the T' sweep of the smoke profile there. A job that somebody cancels, and one that
runs over its time, are run again with more time.
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
import yaml

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
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
STEP = """#!/bin/sh
export {configured}
[ "$(squeue -h -j "$SLURM_JOB_ID" -o %l)" = {short} ] && sleep 600
exec {srun} "$@"
"""
WITHOUT_ACCOUNTING = """
slurm-status-command: squeue
slurm-init-seconds-before-status-checks: 5
"""
SWEEP = "05_sweep_t_prime"
*POINTS, LATE = [f"{SWEEP}.{t_prime}" for t_prime in load_profile("smoke").sweep.t_primes[:4]]
KILLED = POINTS[1]
SHORT = "1:00"  # the time limit, as SLURM writes it, of a job that the cluster never gets done
PATIENCE = 3000  # seconds, beside other work

pytestmark = pytest.mark.hours


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
    step.write_text(STEP.format(configured=configured, srun=found("srun"), short=SHORT), encoding="utf-8")
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
    """The cluster's jobs of a rule, first come first: number, state and time limit of each."""
    told = ask(environment, "squeue", "-h", "-t", "all", "-S", "i", "-o", "%k %i %T %l").splitlines()
    return [tuple(line.split()[1:]) for line in told if line.split()[0] == f"rule_{rule}"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where the runs write: a name that a shell and Snakemake would misread."""
    return tmp_path_factory.mktemp("out") / "it's {x}"


@contextmanager
def reproduced(cluster, folder, out, *targets, **wants):
    """`make reproduce CLUSTER=...` of some jobs, begun, with the log that it writes.

    wants: instead of what the profile's notebooks.yaml says of a notebook.
    """
    profile, log = folder / "my cluster", folder / "log"
    shutil.copytree(CLUSTERS / "slurm", profile)
    config = (profile / "config.yaml").read_text(encoding="utf-8")
    config = re.sub("^slurm-init.*\n", "", config, flags=re.MULTILINE)
    (profile / "config.yaml").write_text(config + WITHOUT_ACCOUNTING, encoding="utf-8")
    table = profile / "notebooks.yaml"
    table.write_text(yaml.safe_dump(yaml.safe_load(table.read_text(encoding="utf-8")) | wants), encoding="utf-8")
    asked = {"PROFILE": "smoke", "CLUSTER": str(profile), "OUT_FOLDER": str(out), "TARGETS": " ".join(targets)}
    environment = cluster | {f"PDLIB_{name}": value for name, value in asked.items()}
    with log.open("w") as stream:
        how = {"cwd": ROOT, "env": environment, "stdout": stream, "stderr": subprocess.STDOUT}
        run = subprocess.Popen([sys.executable, "-m", "pdlib.reproduce"], **how)
    try:
        yield run, log
    finally:
        run.kill()


def check_told(log, out, again, *points):
    """The log tells of an end and a new start of one job, and no other; all points are done."""
    told, place = log.read_text(), layout("smoke", str(out))
    assert re.search(rf"{re.escape(again)} failed;.*{re.escape(again)} is done", told, re.DOTALL)
    assert "] failed:" not in told and told.count(f"{again} starts") == 2 and told.count(" failed;") == 1
    assert all(place.done(point).exists() for point in points)


@pytest.mark.fault("job ended by the cluster")
def test_the_sweep_runs_on_slurm_and_outlives_a_job_that_the_cluster_ends(cluster, tmp_path, out):
    rule = rule_name(KILLED)

    def running():
        return [number for number, state, _ in jobs_of(cluster, rule) if state == "RUNNING"]

    with reproduced(cluster, tmp_path, out, *POINTS) as (run, log):
        until(lambda: run.poll() is not None or running(), rule, seconds=PATIENCE)
        assert run.poll() is None, log.read_text()[-4000:]
        (first,) = running()
        subprocess.run(["scancel", first], env=cluster, check=True)
        assert run.wait(timeout=PATIENCE) == 0, log.read_text()[-4000:]
    check_told(log, out, KILLED, *POINTS)
    ends = [about for _, *about in jobs_of(cluster, rule)]
    assert ends == [["CANCELLED", "1-00:00:00"], ["COMPLETED", "2-00:00:00"]], "twice the time, as notebooks.yaml says"
    logs = [path.stem for path in out.rglob("*.log") if rule in path.parts[-2]]
    assert logs == [first], "the log of the ended job alone"


@pytest.mark.fault("job ended by the cluster")
def test_a_job_that_runs_over_its_time_is_ended_and_run_again_with_more(cluster, tmp_path, out):
    wants = {SWEEP: {"runtime": "59 * attempt - 58", "mem_mb": 1000}}
    with reproduced(cluster, tmp_path, out, LATE, **wants) as (run, log):
        assert run.wait(timeout=PATIENCE) == 0, log.read_text()[-4000:]
    check_told(log, out, LATE, LATE)
    ends = [about for _, *about in jobs_of(cluster, rule_name(LATE))]
    assert ends == [["TIMEOUT", SHORT], ["COMPLETED", "1:00:00"]]
