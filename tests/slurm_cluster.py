"""A real SLURM of two nodes on this machine, for as long as it is needed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PACKAGES = ("slurm-wlm", "munge")
TEMPLATE = Path(__file__).parent / "slurm" / "slurm.conf"
APT = ("apt-get", "--quiet", "--yes", "-o", "DPkg::Lock::Timeout=120")


# Debian keeps daemons where the PATH of a plain user, or of a bare environment, does not look.
ADMINISTRATION = ("/usr/sbin", "/sbin")


class NoSlurm(Exception):
    """Why there can be no SLURM on this machine."""


def install() -> None:
    """Install Debian's packages unless they are there.

    Raises:
        NoSlurm: it cannot be done here.
    """
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *ADMINISTRATION])
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.geteuid() != 0:
        raise NoSlurm("SLURM is not installed, and only root could install it")
    if shutil.which("apt-get") is None:
        raise NoSlurm("SLURM is not installed, and there is no apt-get to install it with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            [*APT, *command], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise NoSlurm(f"SLURM is not installed, and apt-get {command[0]} failed: {last}")


@contextmanager
def slurm() -> Iterator[Path]:
    """Start a SLURM and point this process at it; stop it and all of its jobs at the end.

    Yields:
        folder of its configuration and logs.

    Raises:
        NoSlurm: it does not run here; not root, for one.
    """
    install()
    if os.geteuid() != 0:
        raise NoSlurm("only root can start SLURM's daemons")
    before = os.environ.get("SLURM_CONF")
    # A short path: that of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        nodes = _configure(folder)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        with ExitStack() as daemons:
            for command in _commands(folder, nodes):
                daemons.enter_context(_daemon(command))
            _wait_until_idle(folder, len(nodes))
            try:
                yield folder
            finally:
                subprocess.run(["scancel", "--user=root"], check=False)
                _wait_until_empty()
    finally:
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> list[str]:
    host = socket.gethostname().partition(".")[0]
    nodes = [host, "localhost"]
    for name in ("state", *(f"spool-{node}" for node in nodes)):
        (folder / name).mkdir()
    ports = dict(zip(("controller_port", "first_port", "second_port"), _free_ports(3), strict=True))
    text = TEMPLATE.read_text().format(host=host, folder=folder, **ports)
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    # munged asks that others may enter the folder of its socket.
    folder.chmod(0o755)
    return nodes


def _commands(folder: Path, nodes: list[str]) -> list[list[str]]:
    munge = {
        "socket": "munge.sock",
        "key-file": "munge.key",
        "pid-file": "munge.pid",
        "log-file": "munge.log",
        "seed-file": "munge.seed",
    }
    options = [f"--{name}={folder / file}" for name, file in munge.items()]
    return [
        ["munged", "--foreground", "--force", *options],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in nodes),
    ]


@contextmanager
def _daemon(command: list[str]) -> Iterator[None]:
    # Should the tests be killed, the daemons go too.
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in sockets]


def _wait_until_idle(folder: Path, nodes: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        command = ["sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.stdout.strip() == str(nodes):
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-1000:] for path in folder.glob("*.log"))
    raise NoSlurm(f"its nodes do not come up: {logs}")


def _wait_until_empty() -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        answer = subprocess.run(["squeue", "--noheader"], capture_output=True, check=False)
        if not answer.stdout.strip():
            return
        time.sleep(0.2)
