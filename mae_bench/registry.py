"""Name -> "module:attribute", imported on first use, so that listing names imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from mae_bench.errors import unknown


class Registry(Mapping[str, Any]):
    """A fixed table of lazily imported objects.

    Args:
        kind: what the names are, for error messages ("backbone", "task", ...).
        entries: name -> "package.module:attribute".

    Raises:
        UserError: on look-up of an unknown name, with the nearest names and the full list.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]):
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        module, _, attribute = self._entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
