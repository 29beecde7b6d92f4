"""Speed and memory of the dense encoder beside ViTDet's formulation of it, written plainly.

Both hold the same weights and see the same image; outputs and gradients are compared first, then a
pass of one and a pass of the other are timed in turn, so that whatever else the machine does hits
both; on a busy machine the ratio of processor time says more than that of the clock. Memory is what
a pass adds to a fresh process that holds the model.

The plain encoder pads every window with zeros before the projection to queries, keys and values,
and writes attention out: two products, a softmax, and relative positions added to the full matrix
of logits. Without --amp everything is fp32.

    python benchmarks/dense.py --size 512 --threads 2
    python benchmarks/dense.py --device cuda --amp bf16 --relative decomposed none --out dense.json

Source of the formulation: arXiv:2203.16527; detectron2 modeling/backbone/vit.py at 02b5c4e.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import create_backbone
from backbones.vit import VisionTransformer
from mae_bench.provenance import cpu_model

MODES = ("forward", "forward+backward")
SIDES = ("plain", "ours")
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 1e-5  # of the largest value, in fp32

# Fresh processes that need not import everything again.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["torch", "backbones.vit", "mae_bench.provenance"])


class PlainViT(nn.Module):
    """ViTDet's encoder; parameters are named as ours, so that the same weights fit both."""

    def __init__(self, ours: VisionTransformer):
        super().__init__()
        dim, self.grid, self.patch_size = ours.embed_dim, ours.grid, ours.patch_size
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, self.patch_size, self.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros_like(ours.pos_embed))
        self.blocks = nn.ModuleList(PlainBlock(dim, block.attn) for block in ours.blocks)
        self.load_state_dict({k: v for k, v in ours.state_dict().items() if k[:5] != "norm."})

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w) after the last block."""
        x = self.patch_embed.proj(images).permute(0, 2, 3, 1)
        table = self.pos_embed[:, 1:].unflatten(1, self.grid).permute(0, 3, 1, 2)
        table = F.interpolate(table, x.shape[1:3], mode="bicubic", align_corners=False)
        x = x + table.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)


class PlainBlock(nn.Module):
    """Pre-norm block on a map (B, h, w, D), in windows where ours has them."""

    def __init__(self, dim: int, like: nn.Module):
        super().__init__()
        self.window = like.window_size
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = PlainAttention(dim, like)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.window:
            batch, h, w, dim = y.shape
            s = self.window
            y = F.pad(y, (0, 0, 0, -w % s, 0, -h % s))
            rows, columns = y.shape[1] // s, y.shape[2] // s
            y = y.view(batch, rows, s, columns, s, dim).transpose(2, 3).reshape(-1, s, s, dim)
            y = self.attn(y).view(batch, rows, columns, s, s, dim).transpose(2, 3)
            y = y.reshape(batch, rows * s, columns * s, dim)[:, :h, :w]
        else:
            y = self.attn(y)
        x = x + y
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class PlainAttention(nn.Module):
    """Attention as the formula has it, the matrix of weights in memory."""

    def __init__(self, dim: int, like: nn.Module):
        super().__init__()
        self.heads, self.relative = like.num_heads, like.relative
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        if self.relative == "decomposed":
            self.rel_pos_h = nn.Parameter(torch.zeros_like(like.rel_pos_h))
            self.rel_pos_w = nn.Parameter(torch.zeros_like(like.rel_pos_w))
        elif self.relative == "table":
            table = torch.zeros_like(like.relative_position_bias_table)
            self.relative_position_bias_table = nn.Parameter(table)

    def forward(self, x: Tensor) -> Tensor:
        batch, h, w, dim = x.shape
        qkv = self.qkv(x).reshape(batch, h * w, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)
        logits = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)
        rows, columns = (torch.arange(n, device=x.device) for n in (h, w))
        rows, columns = rows[:, None] - rows + h - 1, columns[:, None] - columns + w - 1
        if self.relative == "decomposed":
            places = q.unflatten(1, (h, w))
            row = torch.einsum("byxd,ykd->byxk", places, self.rel_pos_h[rows])
            column = torch.einsum("byxd,xkd->byxk", places, self.rel_pos_w[columns])
            logits = logits.view(-1, h, w, h, w) + row[..., None] + column[..., None, :]
            logits = logits.view(-1, h * w, h * w)
        elif self.relative == "table":
            index = rows[:, None, :, None] * (2 * w - 1) + columns[None, :, None, :]
            bias = self.relative_position_bias_table[index.reshape(h * w, h * w)]
            logits = logits.unflatten(0, (batch, -1)) + bias.permute(2, 0, 1)
            logits = logits.flatten(0, 1)
        x = (logits.softmax(-1) @ v).view(batch, self.heads, h, w, -1)
        return self.proj(x.permute(0, 2, 3, 1, 4).reshape(batch, h, w, dim))


Pass = Callable[[str], Tensor]


def build(side: str, options: argparse.Namespace, relative: str) -> tuple[nn.Module, Pass]:
    """One of the two encoders and a function that runs a pass of the given mode."""
    torch.manual_seed(0)
    model = create_backbone(
        options.backbone,
        window_size=options.window,
        relative_positions=None if relative == "none" else relative,
        relative_img_size=options.size,
    )
    for name, parameter in model.named_parameters():
        if "rel" in name:  # they start at zero
            nn.init.normal_(parameter, std=0.02)
    images = torch.randn(options.batch, 3, options.size, options.size).to(options.device)
    last = (model.depth - 1,)
    model = (model if side == "ours" else PlainViT(model)).to(options.device)
    run = (lambda: model.forward_maps(images, last)[0]) if side == "ours" else lambda: model(images)
    dtype = AMP[options.amp]

    def step(mode: str) -> Tensor:
        grad = mode == MODES[1]
        autocast = torch.autocast(options.device, dtype, enabled=dtype is not None)
        with torch.set_grad_enabled(grad), autocast:
            out = run()
        if grad:
            model.zero_grad(set_to_none=True)
            out.float().square().mean().backward()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return out.detach()

    return model, step


def difference(options: argparse.Namespace, relative: str) -> dict[str, float]:
    """Largest difference of outputs and of gradients, over the largest value.

    Raises:
        SystemExit: the two do not compute the same.
    """
    (plain, plain_step), (ours, our_step) = (build(side, options, relative) for side in SIDES)
    found = {"output": _relative(plain_step(MODES[0]), our_step(MODES[0]))}
    plain_step(MODES[1]), our_step(MODES[1])
    gradients = dict(ours.named_parameters())
    found["gradient"] = max(
        _relative(parameter.grad, gradients[name].grad)
        for name, parameter in plain.named_parameters()
    )
    if options.amp == "none" and max(found.values()) > TOLERANCE:
        raise SystemExit(f"the two do not compute the same: {found}, {TOLERANCE} is allowed")
    return found


def _relative(expected: Tensor, found: Tensor) -> float:
    return ((expected - found).abs().max() / expected.abs().max()).item()


Times = dict[str, list[float]]


def seconds(options: argparse.Namespace, relative: str, mode: str) -> tuple[Times, Times]:
    """Wall and processor time of every repeat, in turn after one pass each that does not count."""
    steps = {side: build(side, options, relative)[1] for side in SIDES}
    wall, processor = {side: [] for side in SIDES}, {side: [] for side in SIDES}
    for repeat in range(options.repeats + 1):
        for side in SIDES:
            started = time.perf_counter(), time.process_time()
            steps[side](mode)
            if repeat:
                wall[side].append(time.perf_counter() - started[0])
                processor[side].append(time.process_time() - started[1])
    return wall, processor


def ratio(taken: Times) -> float:
    """Median over the pairs of ours / plain."""
    return statistics.median(b / a for a, b in zip(taken["plain"], taken["ours"], strict=True))


def added_mb(side: str, options: argparse.Namespace, relative: str, mode: str) -> float:
    """Peak memory that one pass adds to the model and the image, in MB (in a fresh process)."""
    torch.set_num_threads(options.threads)
    _, step = build(side, options, relative)
    if options.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(mode)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory_mb("VmRSS")
    step(mode)
    return _memory_mb("VmHWM") - before


def _memory_mb(entry: str) -> float:
    """Linux's account of this process: VmRSS resident now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {entry} in /proc/self/status")


def measure(options: argparse.Namespace, relative: str) -> list[dict[str, Any]]:
    """Rows of the table for one kind of relative positions."""
    equal = difference(options, relative)
    rows = []
    for mode in MODES:
        wall, processor = seconds(options, relative, mode)
        memory = {}
        for side in SIDES:
            with FRESH.Pool(1) as fresh:
                memory[side] = fresh.apply(added_mb, (side, options, relative, mode))
        rows.append({
            "relative": relative,
            "mode": mode,
            "seconds": {side: statistics.median(wall[side]) for side in SIDES},
            "all_seconds": wall,
            "time_ratio": ratio(wall),
            "processor_ratio": ratio(processor),
            "added_mb": memory,
            "memory_ratio": memory["ours"] / memory["plain"],
            "difference": equal,
        })
    return rows


def machine(options: argparse.Namespace) -> str:
    """The device in words."""
    if options.device == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_model()}, {options.threads} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_base_patch16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, help="pixels; default 512 on a CPU, 1024 on a GPU")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--window", type=int, default=14, help="patches; 0 for none")
    parser.add_argument(
        "--relative",
        nargs="+",
        choices=("none", "decomposed", "per-block"),
        default=["decomposed", "none"],
    )
    parser.add_argument("--amp", choices=AMP, default="none")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    options.size = options.size or (512 if options.device == "cpu" else 1024)
    torch.set_num_threads(options.threads)

    print(
        f"{options.backbone}, {options.size} px, batch {options.batch}, windows of "
        f"{options.window}, amp {options.amp}; {machine(options)}; torch {torch.__version__}"
    )
    print(
        "relative    pass               plain s   ours s  ratio (processor)  plain MB  ours MB  "
        "ratio  difference"
    )
    rows = []
    for relative in options.relative:
        for row in measure(options, relative):
            rows.append(row)
            second, memory = row["seconds"], row["added_mb"]
            print(
                f"{relative:11} {row['mode']:17} {second['plain']:8.3f} {second['ours']:8.3f}  "
                f"{row['time_ratio']:5.2f} ({row['processor_ratio']:.2f})      "
                f"{memory['plain']:8.0f} {memory['ours']:8.0f}  "
                f"{row['memory_ratio']:5.2f}  {max(row['difference'].values()):.1e}",
                flush=True,
            )
    if options.out:
        facts = {key: value for key, value in vars(options).items() if key != "out"}
        facts |= {"device_name": machine(options), "torch": torch.__version__}
        facts["python"] = platform.python_version()
        options.out.write_text(json.dumps({"settings": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
