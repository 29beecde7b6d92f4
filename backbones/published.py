"""What is known of published checkpoint files: where they are from, and how their hashes begin.

`published.json` names files of the official READMEs. Their owners publish beginnings of hashes
only: MAE's README the first six digits of the MD5, detectron2's model zoo the same in the file's
name, DeiT and OpenMMLab the first eight of the SHA-256 in the file's name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mae_bench.errors import UserError

LIST = Path(__file__).with_name("published.json")
CHUNK = 1 << 20


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        file: its name; `url`: where its owners keep it.
        backbone, format: names in `backbones`.
        init: what it was trained with.
        md5, sha256: beginnings of its hashes, "" where not published.
    """

    file: str
    url: str
    backbone: str
    format: str
    init: str
    md5: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        known = {"SHA-256": self.sha256, "MD5": self.md5}
        checked = [f"{kind} begins with {start}" for kind, start in known.items() if start]
        how = f"{checked[0]}, as published" if checked else "no hash published, not checked"
        return f"{self.file} ({self.init}; {how})"


def list_published() -> list[Published]:
    """Return every file that is known."""
    return [Published(**entry) for entry in json.loads(LIST.read_text())]


def file_hashes(path: Path) -> tuple[str, str]:
    """Return (SHA-256, MD5) of a file."""
    # MD5 is compared with what was published, it protects nothing.
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def check_published(path: Path, sha256: str, md5: str) -> Published | None:
    """Return the published file of this name, None if there is none.

    Raises:
        UserError: the file has its name and another content.
    """
    known = next((entry for entry in list_published() if entry.file == path.name), None)
    if known is None:
        return None
    for kind, start, found in (("SHA-256", known.sha256, sha256), ("MD5", known.md5, md5)):
        if not found.startswith(start):
            raise UserError(
                f"{path} has the name of a published file ({known.url}) but not its content: its "
                f"{kind} begins with {found[: len(start)]}, the published one with {start}. Fetch "
                "it again, or give it another name where it is a file of your own"
            )
    return known
