"""The encoder of DALL-E's discrete VAE, BEiT's tokenizer, from its published file.

Shapes: B batch, K codes (8192), h = H/8, w = W/8.

Source: arXiv:2102.12092 App. A.2; layout and arithmetic as in microsoft/unilm beit/dall_e (module
names, convolutions called `w` and `b`, pixels squeezed into [0.1, 0.9]).
Differs: computed in fp32 everywhere, where the published code uses fp16 on a GPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.checkpoints import read_tensors
from mae_bench.errors import UserError

GROUPS = 4
LAYOUT = "dalle"
# The classes a published encoder.pkl names. None of them is imported: each becomes a `Shell`.
PICKLED_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)


class Bottleneck(nn.Module):
    """Residual block: three 3x3 convolutions at a quarter of the width, then a 1x1.

    Args:
        gain: factor on the residual path, 1 / (number of blocks in the encoder)^2.
    """

    def __init__(self, before: int, after: int, gain: float):
        super().__init__()
        inner = after // 4
        widths = [(before, inner, 3), (inner, inner, 3), (inner, inner, 3), (inner, after, 1)]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, (wide, out, kernel) in enumerate(widths, start=1):
            layers[f"relu_{index}"] = nn.ReLU()
            layers[f"conv_{index}"] = nn.Conv2d(wide, out, kernel, padding=kernel // 2)
        self.res_path = nn.Sequential(layers)
        self.id_path = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return self.id_path(x) + self.gain * self.res_path(x)


class DalleEncoder(nn.Module):
    """Images -> ids; it has no decoder, so its ids cannot be shown as pixels.

    Args:
        width: channels of the first group; the four groups have 1, 2, 4 and 8 times as many.
        depth: blocks per group.
    """

    stride = 8
    decodes = False

    def __init__(self, *, num_codes: int = 8192, width: int = 256, depth: int = 2):
        super().__init__()
        self.num_codes, self.width, self.depth = num_codes, width, depth
        gain = 1 / (GROUPS * depth) ** 2
        blocks: OrderedDict[str, nn.Module] = OrderedDict(input=nn.Conv2d(3, width, 7, padding=3))
        before = width
        for group in range(GROUPS):
            after = width << group
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range(depth):
                layers[f"block_{index + 1}"] = Bottleneck(before, after, gain)
                before = after
            if group < GROUPS - 1:
                layers["pool"] = nn.MaxPool2d(2)
            blocks[f"group_{group + 1}"] = nn.Sequential(layers)
        head = OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(before, num_codes, 1))
        blocks["output"] = nn.Sequential(head)
        self.blocks = nn.Sequential(blocks)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of 8 -> (B, K, h, w)."""
        with torch.autocast(images.device.type, enabled=False):
            return self.blocks(images.float() * 0.8 + 0.1)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> ids (B, h, w), int64."""
        return self.logits(images).argmax(dim=1)

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments that build it again, with the layout's name."""
        sizes = {"num_codes": self.num_codes, "width": self.width, "depth": self.depth}
        return {"layout": LAYOUT, **sizes}


def load_dalle(path: Path) -> DalleEncoder:
    """Read a DALL-E encoder: the published pickle, or its state dict as .pth or .safetensors.

    The pickle is a whole module. torch's restricted reader takes it apart with inert stand-ins for
    its classes, so nothing in the file can run. It does so for torch's zip format only (1.6 and
    later); an older pickle of a module is refused.

    Raises:
        UserError: no such file, another layout, or a file that wants code run.
    """
    weights = {_own_name(name): value.float() for name, value in _read(path).items()}
    if "blocks.input.weight" not in weights or "blocks.output.conv.weight" not in weights:
        raise UserError(
            f"{path} is neither a tokenizer written by MAE-bench nor DALL-E's encoder "
            f"(it has {sorted(weights)[:3]}, blocks.input.* and blocks.output.conv.* are needed)"
        )
    width = len(weights["blocks.input.weight"])
    depth = len({name.split(".")[2] for name in weights if name.startswith("blocks.group_1.")})
    encoder = DalleEncoder(
        num_codes=len(weights["blocks.output.conv.weight"]), width=width, depth=depth
    )
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not fit DALL-E's encoder: {reason}") from None
    return encoder.eval()


def _own_name(name: str) -> str:
    """The file's convolutions have `w` and `b`, in some copies below `encoder.`."""
    name = name.removeprefix("module.").removeprefix("encoder.")
    stem, _, last = name.rpartition(".")
    return f"{stem}.{ {'w': 'weight', 'b': 'bias'}.get(last, last) }"


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no tokenizer at {path}")
    if path.suffix == ".safetensors":
        return read_tensors(path)[1]
    stand_ins = [(Shell, name) for name in PICKLED_CLASSES]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise UserError(
            f"{path} cannot be read as DALL-E's encoder without running code from it "
            f"({type(error).__name__}). Give the published encoder.pkl in torch's zip format, or "
            "its state_dict() as .pth or .safetensors, written where the file is trusted"
        ) from None
    if isinstance(content, Shell):
        try:
            return dict(content.tensors())
        except (AttributeError, TypeError, RecursionError):
            raise UserError(f"{path} is a pickled module of another layout than DALL-E's") from None
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


class Shell:
    """Stands in for every class of a pickled module: takes its state and does nothing."""

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield (dotted name, parameter) of this module and those inside."""
        for name, value in self.__dict__.get("_parameters", {}).items():
            yield prefix + name, value.detach()
        for name, child in self.__dict__.get("_modules", {}).items():
            yield from child.tensors(f"{prefix}{name}.")
