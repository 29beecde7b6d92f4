"""What kind of file holds weights, told by its first bytes and never by its suffix. No torch.

Kinds: torch's zip and its older pickle stream, safetensors, NumPy's npz, a pickle of NumPy arrays
(detectron2's model zoo), and TorchScript, which is recognised to be refused.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from mae_bench.errors import UserError

# A pickle stream of torch before 1.6 opens with this number (torch/serialization.py MAGIC_NUMBER).
TORCH_STREAM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP, PICKLE, NPY = b"PK\x03\x04", b"\x80", b"\x93NUMPY"
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit


def kind_of(path: Path) -> str:
    """Return "torch", "safetensors", "npz", "pickle" or "TorchScript".

    Cheap: reads the first bytes, and what safetensors and zips say of the rest, so that a download
    that was cut short is noticed. That a file is of a kind does not mean that its content is right.

    Raises:
        UserError: no such file, an empty or truncated one, or no weights.
    """
    start = _first_bytes(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER:
        _check_length(path)
        return "safetensors"
    if start.startswith(ZIP):
        return _kind_of_zip(path)
    if start.startswith(TORCH_STREAM):
        return "torch"
    if start.startswith(PICKLE):
        return "pickle"
    raise UserError(f"{path} {_other(start)}. Readable: .pth, .safetensors, .npz, .pkl")


def damaged(path: Path, kind: str, reason: str) -> UserError:
    """Return (not raise) the error for a file whose content does not hold together."""
    return UserError(
        f"{path} is not a readable {kind} file: truncated or damaged ({reason}). "
        "Fetch or copy it again"
    )


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the checkpoint file in it")
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    if not start:
        raise UserError(f"{path} is empty; fetch or copy it again")
    return start


def _check_length(path: Path) -> None:
    """Refuse a safetensors file that is shorter than its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    try:
        header = json.loads(text)
        ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise damaged(path, "safetensors", "its header cannot be read") from None
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise damaged(path, "safetensors", f"it has {size} bytes, its header says {expected}")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        kind = "npz" if path.suffix == ".npz" else "torch"
        raise damaged(path, kind, str(error)) from None
    if all(name.endswith(".npy") for name in names):
        return "npz"
    return "TorchScript" if any("/code/" in name for name in names) else "torch"


def _other(start: bytes) -> str:
    if start.lstrip().startswith(b"<"):
        return "is a web page, not weights: the download met an error or a login"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves: fetch them with git lfs pull"
    if start.startswith(NPY):
        return "is one NumPy array without a name; weights come as .npz"
    return f"is no file of weights (it starts with {start[:8]!r})"
