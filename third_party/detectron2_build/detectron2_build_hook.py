"""Setuptools hook: build `pb1-detectron2` so that it runs beside today's libraries.

The redistribution's source archive lacks the C++ files, and nothing that MAE-bench uses needs
them: RoIAlign and NMS are torchvision's. detectron2 still imports `detectron2._C` at start-up and
asks it how it was compiled, so a placeholder module takes its place. And release 0.6 reads names
that Pillow and NumPy have since dropped, as soon as its data modules are imported; they are put
back before, so that detectron2's own tools start.
"""

from pathlib import Path

PLACEHOLDER = '''"""Placeholder: this build carries no compiled operators."""


def get_compiler_version():
    return "none (built without compiled operators)"


def get_cuda_version():
    return "none (built without compiled operators)"


def has_cuda():
    return False
'''

NAMES = '''"""Names that detectron2 0.6 reads and newer Pillow and NumPy dropped, put back."""

import numpy
import PIL.Image

if not hasattr(PIL.Image, "LINEAR"):
    PIL.Image.LINEAR = PIL.Image.BILINEAR
for _name, _builtin in {"int": int, "float": float, "object": object, "bool": bool}.items():
    if _name not in vars(numpy):
        setattr(numpy, _name, _builtin)
'''


def prepare(dist):
    """Make the source tree buildable when (and only when) detectron2 is being built."""
    if dist.get_name() != "pb1-detectron2":
        return
    dist.ext_modules = []
    package = Path("detectron2")
    (package / "_C.py").write_text(PLACEHOLDER)
    (package / "_names.py").write_text(NAMES)
    start = package / "__init__.py"
    first = "from . import _names\n"
    if not start.read_text().startswith(first):
        start.write_text(first + start.read_text())
