"""What became of every key of a checkpoint, and the proof that it is still so later.

`load_report.json` in a run's folder is a `LoadReport` and the encoder's fingerprint at step 0.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mae_bench.job import write_atomically

FILE = "load_report.json"


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash over names, types, shapes and values, in any order of the keys."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class LoadReport(BaseModel):
    """What became of every key of a checkpoint, and of every weight of the encoder.

    Attributes:
        format: name in `backbones.formats.FORMATS`.
        sha256: of the file.
        published: its name in `backbones/published.json`, and how far it was checked; or None.
        loaded: the encoder's names that have the file's values unchanged.
        renamed: of these, the encoder's name -> the file's, where they differ.
        resized: encoder's name -> from what to what, or how else the value was made.
        explained: the file's key -> why it is not in the encoder.
        new: encoder's name that the file has nothing for -> the neutral value it keeps.
        fingerprint: of the file's encoder, as `fingerprint(read_checkpoint(path).weights)`.
        loaded_fingerprint: of the values in `loaded` alone.
        encoder_fingerprint: of the whole encoder right after loading. Without anything resized, new
            or left out, all three are the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    format: str
    sha256: str
    published: str | None
    loaded: tuple[str, ...]
    renamed: dict[str, str]
    resized: dict[str, str]
    explained: dict[str, str]
    new: dict[str, str]
    fingerprint: str
    loaded_fingerprint: str
    encoder_fingerprint: str

    def check(self, encoder: Mapping[str, Tensor]) -> None:
        """Make sure that an encoder still has the weights that were loaded into it.

        Args:
            encoder: its state dict at step 0, inside of whatever framework.

        Raises:
            RuntimeError: something initialised or changed it since.
        """
        kept = fingerprint({name: encoder[name] for name in self.loaded if name in encoder})
        if (kept, fingerprint(encoder)) != (self.loaded_fingerprint, self.encoder_fingerprint):
            raise RuntimeError(
                f"the backbone no longer has the weights of {self.file}: something initialised or "
                "changed it after it was loaded"
            )

    def table(self) -> str:
        """The report in a few lines: one for each kind of fate, and what is not plain loading."""
        lines = [
            f"checkpoint {self.file}",
            f"  format     {self.format}",
            f"  sha256     {self.sha256}",
            f"  weights    {self.fingerprint}",
        ]
        if self.published:
            lines.append(f"  published  {self.published}")
        lines.append(f"  loaded     {len(self.loaded):4d}  keys as they are")
        lines += [f"  resized    {name}: {how}" for name, how in sorted(self.resized.items())]
        lines += [f"  new        {name}: stays {value}" for name, value in sorted(self.new.items())]
        reasons = Counter(self.explained.values())
        lines += [f"  not loaded {number:4d}  {reason}" for reason, number in reasons.items()]
        return "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """What a record keeps of it; the fate of each key stays in `load_report.json`."""
        lists = {"loaded", "renamed", "explained"}
        counts = {"loaded": len(self.loaded), "explained": dict(Counter(self.explained.values()))}
        return {**self.model_dump(mode="json", exclude=lists), **counts}


def record_load(report: LoadReport | None, encoder: nn.Module, folder: Path) -> dict[str, Any]:
    """Prove, print and save what an encoder starts from, right before its first step.

    Args:
        report: of its checkpoint, None for random weights.
        folder: the run's, where `load_report.json` goes.

    Returns:
        Facts for the run's record.

    Raises:
        RuntimeError: something changed the encoder since it was loaded.
    """
    state = encoder.state_dict()
    found = fingerprint(state)
    if report is not None:
        report.check(state)
        print(report.table(), flush=True)
    whole = report.model_dump(mode="json") if report else None
    content = {"checkpoint": whole, "fingerprint_at_step_0": found}
    write_atomically(folder / FILE, json.dumps(content, indent=1))
    return {
        "load_report": report.summary() if report else None,
        "fingerprint_at_step_0": found,
    }
