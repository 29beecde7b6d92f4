"""Speed and memory of a pretraining step beside the published algorithm written plainly.

Both train the same weights on the same images under the same masks, each in a process of its own,
a step of one and a step of the other in turn, so that whatever else the machine does hits both.

The plain step embeds every patch by the convolution before it masks, unshuffles, lets the decoder's
head and the target see every patch, writes attention out as two products and a softmax, and updates
by AdamW parameter after parameter; fp32 on a CPU, fp16 autocast with a loss scaler on a GPU. Ours
has the allocator's settings that every run of ours has; the plain one has them with --same-memory.

    python benchmarks/pretraining.py --backbone vit_base_patch16 --batch 16 --batch 64

Source of the algorithm: arXiv:2111.06377 Sec. 3; facebookresearch/mae models_mae.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.vit import patchify, sincos_positions
from mae_bench.job import write_atomically
from mae_bench.provenance import cpu_model
from mae_bench.runner import MEMORY
from tasks.engine.acceleration import optim_wrapper
from tasks.pretraining.mae import MaskedAutoencoder, build

IMAGE_SIZE = 224
DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
MODEL = {"target": "norm-pixel", "mask_ratio": 0.75, **DECODER}
LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-4, 0.05, (0.9, 0.95)


class PlainAttention(nn.Module):
    """Attention as the formula has it, the matrix of weights in memory."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)) * (dim // self.heads) ** -0.5
        x = weights.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, length, dim))


class PlainMlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class PlainBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = PlainAttention(dim, heads), PlainMlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainMae(nn.Module):
    """The published model; parameters are named as ours, so that the same weights fit both."""

    def __init__(self, ours: MaskedAutoencoder):
        super().__init__()
        encoder, decoder = ours.encoder, ours.decoder
        self.patch_size, self.mask_ratio = encoder.patch_size, MODEL["mask_ratio"]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        for part, like in ((self.encoder, encoder), (self.decoder, decoder)):
            width, heads = like.pos_embed.shape[-1], like.blocks[0].attn.num_heads
            table = sincos_positions(width, encoder.grid)
            part.pos_embed = nn.Parameter(table, requires_grad=False)
            part.blocks = nn.ModuleList(PlainBlock(width, heads) for _ in like.blocks)
            part.norm = nn.LayerNorm(width, eps=1e-6)
        width, decoder_width = encoder.embed_dim, DECODER["decoder_width"]
        self.encoder.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder.patch_embed = nn.Module()
        self.encoder.patch_embed.proj = nn.Conv2d(3, width, self.patch_size, self.patch_size)
        self.decoder.embed = nn.Linear(width, decoder_width)
        self.decoder.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder.head = nn.Linear(decoder_width, self.patch_size**2 * 3)
        self.load_state_dict(ours.state_dict())

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Loss of images (B, 3, H, W) under masks from noise (B, L)."""
        batch, length = noise.shape
        kept = int(length * (1 - self.mask_ratio))
        x = self.encoder.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = x + self.encoder.pos_embed[:, 1:]
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        x = x.gather(1, shuffle[:, :kept, None].expand(-1, -1, x.shape[-1]))
        cls_token = self.encoder.cls_token + self.encoder.pos_embed[:, :1]
        x = torch.cat([cls_token.expand(batch, -1, -1), x], dim=1)
        for block in self.encoder.blocks:
            x = block(x)
        x = self.decoder.embed(self.encoder.norm(x))
        mask_tokens = self.decoder.mask_token.expand(batch, length - kept, -1)
        patches = torch.cat([x[:, 1:], mask_tokens.to(x.dtype)], dim=1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder.pos_embed
        for block in self.decoder.blocks:
            x = block(x)
        prediction = self.decoder.head(self.decoder.norm(x))[:, 1:]
        target = patchify(images, self.patch_size)
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
        mask = (restore >= kept).float()
        return (((prediction - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()


Step = Callable[[Tensor, Tensor], float]


def plain_step(ours: MaskedAutoencoder, device: str) -> Step:
    """The reference: fp32 on a CPU; fp16 autocast and loss scaling on a GPU."""
    model = PlainMae(ours).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY, foreach=False, fused=False
    )
    half = device == "cuda"
    scaler = torch.amp.GradScaler(device, enabled=half)

    def step(images: Tensor, noise: Tensor) -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16, enabled=half):
            loss = model(images, noise)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


def our_step(model: MaskedAutoencoder, device: str, amp: str) -> Step:
    """What `tasks.engine` does in a step of a run with `solver.amp` set."""
    model = model.to(device)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        LEARNING_RATE,
        BETAS,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    precision = None if amp == "none" else amp
    wrapper = optim_wrapper(optimizer, precision, device, accumulation=1)

    def step(images: Tensor, noise: Tensor) -> float:
        return model.train_step({"images": images, "noise": noise}, wrapper)["loss"].item()

    return step


def serve(case: str, options: argparse.Namespace, batch: int, pipe: Connection) -> None:
    """One of the two, in its process: answers a request for a step with (seconds, CPU's, loss).

    When there are no more: with its peak memory in MB, and what was there before the model.
    """
    torch.set_num_threads(options.threads)
    device, before = options.device, _resident_mb()
    torch.manual_seed(0)
    ours = build(options.backbone, {"image_size": IMAGE_SIZE}, MODEL, None).train()
    step = plain_step(ours, device) if case == "plain" else our_step(ours, device, options.amp)
    num_patches = ours.num_patches
    del ours
    generator = torch.Generator().manual_seed(1)
    while pipe.recv():
        images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator).to(device)
        noise = torch.rand(batch, num_patches, generator=generator).to(device)
        _wait(device)
        started, busy = time.perf_counter(), time.process_time()
        loss = step(images, noise)
        _wait(device)
        pipe.send((time.perf_counter() - started, time.process_time() - busy, loss))
    if device == "cuda":
        pipe.send((torch.cuda.max_memory_allocated() / 2**20, 0.0))
    else:
        pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before))


def compare(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Run both in turn; the first step of each warms up and is not counted."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, steps = {}, [], {}
    for case in ("plain", "ours"):
        pipes[case], theirs = context.Pipe()
        process = context.Process(target=serve, args=(case, options, batch, theirs), daemon=True)
        # Read by the C library and by PyTorch when the process starts.
        for name, value in MEMORY.items():
            os.environ.pop(name, None)
            if case == "ours" or options.same_memory:
                os.environ[name] = value
        process.start()
        theirs.close()
        processes.append(process)
        steps[case] = []
    for _ in range(options.steps + 1):
        for case, pipe in pipes.items():
            pipe.send(True)
            steps[case].append(pipe.recv())
    result: dict[str, Any] = {"batch": batch}
    for case, pipe in pipes.items():
        pipe.send(False)
        peak, before = pipe.recv()
        seconds = [step[0] for step in steps[case][1:]]
        result[case] = {
            "seconds": seconds,
            "median": statistics.median(seconds),
            "images_per_second": batch / statistics.median(seconds),
            "best_images_per_second": batch / min(seconds),
            "peak_mb": peak,
            "peak_mb_without_libraries": peak - before,
            # Says more than the clock where something else keeps the machine busy.
            "cpu_seconds": min(step[1] for step in steps[case][1:]),
            "losses": [step[2] for step in steps[case]],
        }
    for process in processes:
        process.join()
    plain, ours = result["plain"], result["ours"]
    result["speed"] = ours["images_per_second"] / plain["images_per_second"]
    result["best_speed"] = ours["best_images_per_second"] / plain["best_images_per_second"]
    result["cpu_time"] = plain["cpu_seconds"] / ours["cpu_seconds"]
    result["memory"] = ours["peak_mb"] / plain["peak_mb"]
    result["memory_without_libraries"] = (
        ours["peak_mb_without_libraries"] / plain["peak_mb_without_libraries"]
    )
    result["loss_difference"] = max(
        abs(a / b - 1) for a, b in zip(ours["losses"], plain["losses"], strict=True)
    )
    return result


def report(result: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = [f"batch {result['batch']}"]
    for case in ("plain", "ours"):
        one = result[case]
        losses = " ".join(f"{loss:.4f}" for loss in one["losses"])
        lines.append(
            f"  {case:6} {one['images_per_second']:7.2f} images/s (best "
            f"{one['best_images_per_second']:.2f}, {one['cpu_seconds']:.1f} CPU seconds a step)  "
            f"{one['peak_mb']:.0f} MB "
            f"({one['peak_mb_without_libraries']:.0f} without libraries)  losses {losses}"
        )
    lines.append(
        f"  ours is {result['speed']:.2f}x as fast (best steps: {result['best_speed']:.2f}x, CPU "
        f"time: {result['cpu_time']:.2f}x) with "
        f"{result['memory']:.2f}x the memory ({result['memory_without_libraries']:.2f}x without "
        f"libraries); losses differ by at most {result['loss_difference']:.2%}"
    )
    return "\n".join(lines)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_base_patch16")
    parser.add_argument("--batch", type=int, action="append", help="twice: both  [16 and 64]")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", default="bfloat16", help="of our step: bfloat16, float16 or none")
    parser.add_argument(
        "--same-memory", action="store_true", help="our settings of the allocator for both"
    )
    parser.add_argument("--out", type=Path, help="JSON with everything measured")
    options = parser.parse_args()
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else cpu_model()
    print(
        f"{options.backbone} at {IMAGE_SIZE} px, torch {torch.__version__}, {hardware}, "
        f"{options.threads} threads, ours in {options.amp}"
    )
    results = []
    for batch in options.batch or [16, 64]:
        results.append(compare(options, batch))
        print(report(results[-1]), flush=True)
    if options.out:
        about = {key: str(value) for key, value in vars(options).items()}
        content = {"options": about, "hardware": hardware, "results": results}
        write_atomically(options.out, json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
