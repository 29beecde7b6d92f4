"""records/: the records themselves, a file each, to be merged elsewhere or published."""

from __future__ import annotations

from collections.abc import Mapping

from mae_bench.lint import SUMS, sums
from mae_bench.records import Record


def render(records: Mapping[str, Record]) -> dict[str, bytes]:
    """Return file name -> content: `<id>.json` for each, and the hashes of all."""
    files = {
        f"{run_id}.json": f"{record.model_dump_json(indent=1)}\n".encode()
        for run_id, record in records.items()
    }
    return {**files, SUMS: sums(files).encode()}
