"""Who has a run's folder: races, the dead and the silent, clocks that lie, no locks, no links."""

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mae_bench import claims
from mae_bench.claims import Claimed, Holder, Watch, current, hold, remove

PATIENCE = 120.0


def python(script: str, *arguments: object) -> subprocess.Popen:
    """Start a script that may use `claims` and has a folder in `folder`."""
    opening = "import os, sys, time; from pathlib import Path; from mae_bench import claims\n"
    opening += "folder = Path(sys.argv[1])\n"
    command = [sys.executable, "-c", opening + script, *map(str, arguments)]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def write_claim(folder: Path, holder: Holder, number: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f".claim-{number}"
    path.write_text(json.dumps(asdict(holder)))
    return path


def elsewhere() -> Holder:
    """A process of another machine that happens to have a pid that lives here."""
    return replace(Holder.here(), place="another machine", host="node7")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_at_a_time_and_free_after(tmp_path) -> None:
    with hold(tmp_path):
        assert current(tmp_path).holder.pid == os.getpid()
        assert Watch().is_held(tmp_path)
        with pytest.raises(Claimed), hold(tmp_path, wait=False):
            pass
    assert current(tmp_path) is None
    with pytest.raises(RuntimeError), hold(tmp_path):
        raise RuntimeError
    assert not Watch().is_held(tmp_path)


def test_claims_do_not_pile_up(tmp_path) -> None:
    for _ in range(5):
        with hold(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [".claim-5"]


def test_the_dead_of_this_machine_are_seen_at_once(tmp_path) -> None:
    process = python(
        "with claims.hold(folder): print('held', flush=True); time.sleep(60)", tmp_path
    )
    assert process.stdout.readline() == "held\n"
    assert Watch().is_held(tmp_path)
    process.kill()
    # Dead, though its parent has not asked for its exit code yet.
    while current(tmp_path).holder.is_alive():
        time.sleep(0.01)
    started = time.monotonic()
    with hold(tmp_path, wait=False):
        assert time.monotonic() - started < 1
    process.wait()


def test_a_pid_that_was_given_to_another_process_is_no_sign_of_life(tmp_path) -> None:
    here = Holder.here()
    write_claim(tmp_path, replace(here, started=here.started - 1))
    assert not Watch().is_held(tmp_path)


@pytest.mark.parametrize("skew", [-600.0, 600.0, 1e9])
def test_elsewhere_lives_as_long_as_its_file_changes(tmp_path, skew) -> None:
    path, clock = write_claim(tmp_path, elsewhere()), Clock()
    watch = Watch(PATIENCE, clock)
    for beat in range(10):
        stamp = time.time() + skew + beat
        os.utime(path, (stamp, stamp))
        assert watch.is_held(tmp_path)
        clock.now += PATIENCE - 1
    # Silent since, whatever its time stamp says of our clock.
    assert watch.is_held(tmp_path)
    clock.now += 2
    assert not watch.is_held(tmp_path)
    with hold(tmp_path, wait=False):
        assert current(tmp_path).holder == replace(
            Holder.here(), since=current(tmp_path).holder.since
        )


def test_a_clock_that_goes_backwards_is_a_sign_of_life(tmp_path) -> None:
    path, clock = write_claim(tmp_path, elsewhere()), Clock()
    watch = Watch(PATIENCE, clock)
    assert watch.is_held(tmp_path)
    clock.now += PATIENCE + 1
    os.utime(path, (1.0, 1.0))
    assert watch.is_held(tmp_path)


def test_one_look_never_declares_anybody_dead(tmp_path) -> None:
    path = write_claim(tmp_path, elsewhere())
    os.utime(path, (1.0, 1.0))
    assert Watch().is_held(tmp_path)
    assert path.stat().st_size > 0


@pytest.mark.parametrize("text", ["{", "[]", '{"pid": "x"}', "\0\0\0", '{"other": 1}'])
def test_a_damaged_claim_is_freed_by_time(tmp_path, text) -> None:
    (tmp_path / ".claim-3").write_text(text)
    clock = Clock()
    watch = Watch(PATIENCE, clock)
    assert watch.is_held(tmp_path)
    clock.now = PATIENCE + 1
    assert not watch.is_held(tmp_path)


COUNT = """
claims.SECONDS_BETWEEN_LOOKS = 0.002
if "no-links" in sys.argv:
    def link(*_): raise PermissionError(1, "no hard links here")
    os.link = link
counter = folder.parent / "counter"
for _ in range(25):
    with claims.hold(folder):
        value = int(counter.read_text() or 0)
        time.sleep(0.001)
        counter.write_text(str(value + 1))
"""


@pytest.mark.parametrize("links", ["links", "no-links"])
def test_many_processes_never_hold_it_together(tmp_path, links) -> None:
    (tmp_path / "counter").write_text("0")
    processes = [python(COUNT, tmp_path / "run", links) for _ in range(5)]
    assert [process.wait(60) for process in processes] == [0] * 5
    assert (tmp_path / "counter").read_text() == "125"


TAKE = """
if "no-links" in sys.argv:
    def link(*_): raise PermissionError(1, "no hard links here")
    os.link = link
print("ready", flush=True)
while not (folder / "go").exists(): pass
for number in range(8):
    for _ in range(50):
        try:
            with claims.hold(folder / str(number), wait=False):
                (folder / f"won {number} {os.getpid()}").touch()
                while len(list(folder.glob(f"lost {number} *"))) < 3: time.sleep(0.001)
            break
        except claims.Claimed: pass
    else:
        (folder / f"lost {number} {os.getpid()}").touch()
"""


@pytest.mark.parametrize("links", ["links", "no-links"])
def test_one_of_many_takes_a_dead_claim_over(tmp_path, links) -> None:
    for number in range(8):
        write_claim(tmp_path / str(number), replace(Holder.here(), started=1), number=7)
    processes = [python(TAKE, tmp_path, links) for _ in range(4)]
    for process in processes:
        process.stdout.readline()
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in processes] == [0] * 4
    winners = sorted(path.name.split()[1] for path in tmp_path.glob("won *"))
    assert winners == list("01234567")


def test_no_lock_is_needed(tmp_path, monkeypatch) -> None:
    def no_locks(*_):
        raise OSError(37, "No locks available")

    for name in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(fcntl, name, no_locks)
    with hold(tmp_path), pytest.raises(Claimed), hold(tmp_path, wait=False):
        pass


def test_the_holder_shows_life(tmp_path) -> None:
    with hold(tmp_path, beat=0.01):
        first = current(tmp_path).beat
        deadline = time.monotonic() + 10
        while current(tmp_path).beat == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("how", ["freed", "removed"])
def test_who_was_taken_for_dead_ends(tmp_path, how) -> None:
    script = "with claims.hold(folder, beat=0.01): print('held', flush=True); time.sleep(60)"
    process = python(script, tmp_path)
    assert process.stdout.readline() == "held\n"
    path = current(tmp_path).path
    if how == "freed":
        os.truncate(path, 0)
    else:
        path.unlink()
    assert process.wait(20) == claims.LOST


def test_a_stale_view_of_the_folder_wins_nothing(tmp_path, monkeypatch) -> None:
    write_claim(tmp_path, Holder.here(), number=5)
    real, answers = claims._latest, [2, 2]
    monkeypatch.setattr(claims, "_latest", lambda f: answers.pop() if answers else real(f))
    with pytest.raises(Claimed), hold(tmp_path, wait=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".claim-5"]


def test_remove(tmp_path) -> None:
    folder = tmp_path / "run"
    with hold(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "file").touch()
        with pytest.raises(Claimed):
            remove(folder)
        assert (folder / "inner" / "file").exists()
    remove(folder)
    remove(folder)
    assert not folder.exists()
