"""A step that does not fit into the GPU's memory: smaller micro-batches, the same effective batch.

The number of micro-batches lies in the run's folder, so that a killed run goes on with it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mae_bench.job import write_atomically

FILE = "accumulation.json"
# What torch says when it is not its own allocator that has run out.
SIGNS = ("out of memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class Accumulation:
    """Micro-batches per step, times the recipe's own; `reasons` has an entry for each increase."""

    factor: int = 1
    reasons: tuple[str, ...] = field(default=())

    @classmethod
    def read(cls, folder: Path) -> Accumulation:
        """Return what earlier attempts at the run came to."""
        try:
            found = json.loads((folder / FILE).read_text())
            return cls(int(found["factor"]), tuple(found["reasons"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Leave it for the next attempt."""
        write_atomically(folder / FILE, json.dumps(asdict(self)), durable=True)

    def more(self, recipe: dict[str, Any], world_size: int, reason: str) -> Accumulation | None:
        """Return at least twice as many micro-batches, None if they cannot get any smaller.

        Args:
            recipe: its `solver` has the effective `batch_size` and, perhaps, `accumulation`.
            reason: first line of what torch said.
        """
        solver = recipe.get("solver", {})
        samples = solver.get("batch_size", 1) // (world_size * solver.get("accumulation", 1))
        fitting = (n for n in range(2 * self.factor, samples + 1) if samples % n == 0)
        factor = next(fitting, None)
        if factor is None:
            return None
        note = f"micro-batch of {samples // self.factor}: {reason}"
        return replace(self, factor=factor, reasons=(*self.reasons, note))

    def facts(self) -> dict[str, object]:
        """What the record says of it; nothing when nothing was changed."""
        if self.factor == 1:
            return {}
        return {"accumulation": self.factor, "out_of_gpu_memory": list(self.reasons)}


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether it, or what caused it, says that the GPU's memory is full."""
    torch = sys.modules.get("torch")
    current: BaseException | None = failure
    while current is not None and torch is not None:
        if isinstance(current, torch.OutOfMemoryError):
            return True
        if isinstance(current, RuntimeError) and any(sign in str(current) for sign in SIGNS):
            return "CUDA" in str(current) or "CUBLAS" in str(current) or "CUDNN" in str(current)
        current = current.__cause__ or current.__context__
    return False
