"""records/: the records themselves, a file each, to be merged elsewhere or published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from mae_bench.records import Record

SUMS = "SHA256SUMS"


def render(records: Mapping[str, Record]) -> dict[str, bytes]:
    """Return file name -> content: `<id>.json` for each, and last the hashes of all."""
    files = {
        f"{run_id}.json": f"{record.model_dump_json(indent=1)}\n".encode()
        for run_id, record in records.items()
    }
    return {**files, SUMS: sums(files).encode()}


def sums(files: Mapping[str, bytes]) -> str:
    """Return the content of `SHA256SUMS`, in the format of `sha256sum`, for these files."""
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return "".join(lines)
