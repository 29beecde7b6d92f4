"""Speed and memory of ViT-B UperNet beside mmseg's own, built from the config file that it ships.

Both hold the same weights and see the same images; losses, gradients and logits are compared first,
without drop path and dropout. Then a training step and a whole sliding-window inference are timed,
each side in a process of its own, in turn, whose peak memory is taken too. Precision is fp32 on
both sides unless --amp says otherwise (mmseg's file is named "amp" and trains in fp32).

    python benchmarks/segmentation.py --threads 2
    python benchmarks/segmentation.py --device cuda --amp bfloat16 --batch 4 --repeats 10
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmseg
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from mae_bench.provenance import cpu_model
from mae_bench.recipes import load_recipe
from tasks.segmentation.config import model_config
from tasks.segmentation.training import build_segmentor, building

THEIRS = Path(mmseg.__file__).parent / ".mim/configs/mae"
THEIRS /= "mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py"
SIDES, MODES = ("mmseg", "ours"), ("train", "slide")
CLASSES = 150
# Of the largest value, in fp32. A ReLU at 0 may fall to either side, hence the gradient's.
TOLERANCES = {"loss": 1e-5, "logits": 1e-4, "gradient": 1e-2}
# Their name -> ours, of what is not in the encoder; heads have the same.
NECK = {
    "neck.upsample_4x.": "backbone.pyramid.levels.0.",
    "neck.upsample_2x.0.": "backbone.pyramid.levels.1.",
}


def their_config(size: int) -> dict[str, Any]:
    """mmseg's model as shipped, with crops of another size if that is asked for."""
    config = Config.fromfile(THEIRS).model
    config.pretrained = None
    config.backbone.img_size = (size, size)
    config.data_preprocessor.size = (size, size)
    config.test_cfg.update(crop_size=(size, size), stride=(size * 2 // 3,) * 2)
    return config


def our_config(size: int, checkpoint: Path) -> dict[str, Any]:
    """Ours from the recipe, starting from their weights."""
    overrides = {"data.crop_size": size, "data.image_size": size, "test.stride": size * 2 // 3}
    recipe = load_recipe("segmentation/upernet", overrides)
    config = model_config(recipe, CLASSES, "vit_base_patch16", str(checkpoint))
    config["backbone"]["format"] = "mmseg"
    return config


def build(side: str, options: argparse.Namespace, folder: Path, still: bool) -> EncoderDecoder:
    """One of the two with the weights in the folder, which the first call for "mmseg" makes.

    Args:
        still: without drop path and dropout.
    """
    file = folder / "mmseg.pth"
    config = their_config(options.size) if side == "mmseg" else our_config(options.size, file)
    if still:
        config["backbone"]["drop_path_rate"] = 0.0
        for head in ("decode_head", "auxiliary_head"):
            config[head]["dropout_ratio"] = 0.0
    with building():
        model = build_segmentor(config, 0)
    if side == "ours":
        theirs = torch.load(file)["state_dict"]
        renamed = {_our_name(name): value for name, value in theirs.items()}
        rest = {name: value for name, value in renamed.items() if name in model.state_dict()}
        rest |= {k: v for k, v in model.state_dict().items() if k.startswith("backbone.encoder.")}
        model.load_state_dict(rest)
    elif file.exists():
        model.load_state_dict(torch.load(file)["state_dict"])
    else:
        _no_neutral_values(model)
        torch.save({"state_dict": model.state_dict(), "meta": {}}, file)
    return revert_sync_batchnorm(model).to(options.device)


def _our_name(name: str) -> str:
    for theirs, ours in NECK.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _no_neutral_values(model: EncoderDecoder) -> None:
    """Tables start at zero and layer scale at one, which would hide their being left out."""
    for name, parameter in model.named_parameters():
        if "relative_position_bias_table" in name or "gamma" in name:
            torch.nn.init.normal_(parameter, mean=float("gamma" in name), std=0.1)


def batch(options: argparse.Namespace, mode: str) -> dict[str, Any]:
    """Images as a loader gives them; at test one of 3:4, as ADE20K's are in the median."""
    generator = torch.Generator().manual_seed(0)
    size = (options.size, options.size if mode == "train" else options.size * 4 // 3)
    samples = []
    for _ in range(options.batch if mode == "train" else 1):
        sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size))
        labels = torch.randint(0, CLASSES, (1, *size), generator=generator)
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    images = torch.randint(0, 256, (len(samples), 3, *size), generator=generator)
    return dict(inputs=[*images.to(torch.uint8)], data_samples=samples)


def step(model: EncoderDecoder, mode: str, options: argparse.Namespace) -> Tensor:
    """A training step without the optimizer's part, or one image by windows; loss or logits."""
    dtype = getattr(torch, options.amp) if options.amp else None
    autocast = torch.autocast(options.device, dtype, enabled=dtype is not None)
    data = model.data_preprocessor(batch(options, mode), mode == "train")
    with autocast, torch.set_grad_enabled(mode == "train"):
        if mode == "slide":
            return model.predict(**data)[0].seg_logits.data
        loss, _ = model.parse_losses(model(**data, mode="loss"))
    model.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach()


def difference(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Loss, gradients and logits of the two, as shares of the largest value.

    Raises:
        SystemExit: the two do not compute the same.
    """
    small = argparse.Namespace(**{**vars(options), "size": 128, "amp": None, "batch": 2})
    found: dict[str, dict[str, Tensor]] = {}
    for side in SIDES:
        model = build(side, small, folder / "still", still=True)
        values = {"logits": step(model.eval(), "slide", small)}
        values["loss"] = step(model.train(), "train", small)
        values["gradient"] = torch.cat([
            parameter.grad.flatten()
            for head in (model.decode_head, model.auxiliary_head)
            for parameter in head.parameters()
        ])
        found[side] = values
    differences = {
        name: _relative(value, found["ours"][name]) for name, value in found["mmseg"].items()
    }
    if any(differences[name] > tolerance for name, tolerance in TOLERANCES.items()):
        raise SystemExit(f"the two do not compute the same: {differences}")
    return differences


def _relative(expected: Tensor, found: Tensor) -> float:
    return ((expected - found).abs().max() / expected.abs().max()).item()


def measure(side: str, mode: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of every repeat and peak memory in MB, in this (fresh) process."""
    torch.set_num_threads(options.threads)
    model = build(side, options, folder, still=False).train(mode == "train")
    for _ in range(options.warmup):
        step(model, mode, options)
    _reset_peak(options.device)
    seconds, processor = [], []
    for _ in range(options.repeats):
        started = time.perf_counter(), time.process_time()
        step(model, mode, options)
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
    return {"seconds": seconds, "processor": processor, "peak_mb": _peak_mb(options.device)}


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # What loading left in the heap differs from run to run.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def machine(options: argparse.Namespace) -> str:
    """The device in words."""
    if options.device == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_model()}, {options.threads} threads"


def ratio(sides: Mapping[str, Mapping[str, Any]], figure: str) -> float:
    """Ours / mmseg's, of medians."""
    ours, theirs = (sides[side][figure] for side in ("ours", "mmseg"))
    return statistics.median(ours) / statistics.median(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, default=512, help="px of the crop")
    parser.add_argument("--batch", type=int, default=2, help="images in a training step")
    parser.add_argument("--amp", choices=("bfloat16", "float16"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=0, help="passes that do not count")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"ViT-B UperNet, {options.size} px, batch {options.batch}, amp {options.amp}; "
        f"{machine(options)}; torch {torch.__version__}"
    )
    fresh = multiprocessing.get_context("spawn")
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "still").mkdir()
        equal = difference(options, folder)
        print("difference: " + ", ".join(f"{k} {v:.1e}" for k, v in equal.items()), flush=True)
        build("mmseg", options, folder, still=False)
        for mode in options.modes:
            sides = {}
            for side in SIDES:
                with fresh.Pool(1) as pool:
                    sides[side] = pool.apply(measure, (side, mode, options, folder))
            rows[mode] = sides
            memory = sides["ours"]["peak_mb"] / sides["mmseg"]["peak_mb"]
            for side in SIDES:
                second = statistics.median(sides[side]["seconds"])
                print(f"{mode:6} {side:6} {second:8.3f} s   {sides[side]['peak_mb']:8.0f} MB")
            print(
                f"{mode:6} ratio  {ratio(sides, 'seconds'):8.2f} (processor "
                f"{ratio(sides, 'processor'):.2f})   {memory:8.2f}",
                flush=True,
            )
    if options.out:
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        settings |= {"device_name": machine(options), "torch": torch.__version__}
        settings["python"] = platform.python_version()
        content = {"settings": settings, "difference": equal, "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
