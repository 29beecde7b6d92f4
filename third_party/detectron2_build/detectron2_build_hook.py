"""Setuptools hook: build `pb1-detectron2` without its C++ extension.

The redistribution's source archive lacks the C++ files, and nothing that MAE-bench uses needs
them: RoIAlign and NMS are torchvision's. detectron2 still imports `detectron2._C` at start-up, so
a placeholder module takes its place.
"""

from pathlib import Path

PLACEHOLDER = '"""Placeholder: this build carries no compiled operators."""\n'


def drop_extension(dist):
    """Empty the list of extensions when (and only when) detectron2 is being built."""
    if dist.get_name() == "pb1-detectron2":
        dist.ext_modules = []
        Path("detectron2/_C.py").write_text(PLACEHOLDER)
