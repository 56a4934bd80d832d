"""A SLURM of two nodes with one CPU each on the loopback address, in one folder, for tests.

It needs slurmctld, slurmd, munged and SLURM's commands (Debian: slurmctld slurmd slurm-client
munge) and root, but neither systemd nor accounting.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "sinfo")
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs=1 RealMemory=4000
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def why_not():
    """What is missing for it here; "" where nothing is."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "" if os.geteuid() == 0 else "munged and slurmd start jobs as root only"


@contextmanager
def started(folder: Path):
    """It runs until the block ends; yields the environment for its commands."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    _write(folder)
    munge = folder / "munge"
    options = [f"--{name}={munge / name}" for name in ("socket", "pid-file", "log-file")]
    options += [f"--seed-file={munge / 'seed'}", f"--key-file={folder / 'key'}", "--force"]
    commands = [["munged", *options], ["slurmctld"], ["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"]]
    try:
        for command in commands:
            subprocess.run(command, env=environment, check=True, capture_output=True)
        _until_idle(environment)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)
        names = ("slurmd.n1.pid", "slurmd.n2.pid", "slurmctld.pid", "munge/pid-file")
        for path in (folder / name for name in names):
            with suppress(OSError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)


def _write(folder):
    for name in ("munge", "state", "spool.n1", "spool.n2"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o711)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    port, first = _free_port(), _free_port()
    words = {"host": socket.gethostname().split(".")[0], "folder": folder, "port": port}
    text = CONFIG.format(**words, ports=f"[{first}-{first + 1}]")
    (folder / "slurm.conf").write_text(text)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _until_idle(environment):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        said = subprocess.run(
            ["sinfo", "-h", "-t", "idle", "-o", "%D"],
            **{"env": environment, "capture_output": True, "text": True, "check": False},
        )
        if said.stdout.strip() == "2":
            return
        time.sleep(0.2)
    raise AssertionError("SLURM's nodes are not idle after a minute")
