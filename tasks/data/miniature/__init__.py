"""The embedded miniature world: five small sets, drawn, in the formats of the real ones.

Deterministic: an image depends on the spec's seed, the set, the split and its index, nothing else.
"""

from __future__ import annotations

from tasks.data.miniature.sheet import contact_sheet
from tasks.data.miniature.writers import write

__all__ = ["contact_sheet", "write"]
