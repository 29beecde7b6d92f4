"""Hashes of large files are remembered, and forgotten when the file changes."""

import hashlib
import os

import pytest

from mae_bench import hashing
from mae_bench.hashing import known_sha256


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mae-bench" / "hashes.json"


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that were read."""
    names = []
    original = hashing.sha256

    def sha256(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(hashing, "sha256", sha256)
    return names


def write(path, content: bytes, seconds: float = 1e9) -> str:
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once(tmp_path, read) -> None:
    path = tmp_path / "a"
    expected = write(path, b"weights")
    assert [known_sha256(path) for _ in range(3)] == [expected] * 3
    assert read == ["a"]


def test_a_changed_file_is_read_again(tmp_path, read) -> None:
    path = tmp_path / "a"
    for content, seconds in ((b"one", 1e9), (b"two", 1e9 + 1), (b"three", 1e9 + 1)):
        expected = write(path, content, seconds)
        assert known_sha256(path) == expected
    # Same size and time, another inode: replaced by renaming.
    expected = write(tmp_path / "b", b"other", 1e9 + 1)
    (tmp_path / "b").replace(path)
    assert known_sha256(path) == expected
    assert len(read) == 4


def test_a_file_that_is_being_written_is_not_remembered(tmp_path, read) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"weights")
    known_sha256(path)
    known_sha256(path)
    assert len(read) == 2


def test_files_that_are_gone_are_forgotten(tmp_path, cache) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, b"weights")
        known_sha256(tmp_path / name)
        if name == "a":
            (tmp_path / "a").unlink()
    assert str(tmp_path / "a") not in cache.read_text()
    assert str(tmp_path / "b") in cache.read_text()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 3}', '{"x": [1]}', "null"])
def test_a_damaged_memory_is_no_memory(tmp_path, cache, content) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    path = tmp_path / "a"
    expected = write(path, b"weights")
    assert known_sha256(path) == expected


def test_nowhere_to_remember_does_no_harm(tmp_path, monkeypatch, read) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    expected = write(tmp_path / "a", b"weights")
    assert known_sha256(tmp_path / "a") == known_sha256(tmp_path / "a") == expected
    assert len(read) == 2
