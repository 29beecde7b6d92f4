"""Names that detectron2 0.6 reads and newer Pillow and NumPy dropped, given back."""

from __future__ import annotations

import numpy as np
import PIL.Image


def restore_names() -> None:
    """Give back the names that detectron2 0.6 reads and newer Pillow and NumPy dropped.

    The project's own build of it does so by itself; this is for any other.
    """
    if not hasattr(PIL.Image, "LINEAR"):
        PIL.Image.LINEAR = PIL.Image.BILINEAR  # type: ignore[attr-defined]
    for name, builtin in {"int": int, "float": float, "object": object, "bool": bool}.items():
        if name not in np.__dict__:
            setattr(np, name, builtin)
