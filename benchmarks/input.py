"""The training input path beside torchvision's, and `data verify` beside reading the files once.

Both loaders give batches of the same distribution: random resized crop to 224 (bicubic), flip,
ImageNet normalisation, from the same JPEG files with the same workers and order. The reference is
torchvision's ImageFolder with transforms on Pillow images, as MAE's fine-tuning has it. They take
turns, so that whatever else the machine does hits both.

    python benchmarks/input.py --images 2000 --workers 2 --scale 0.2 --scale 0.08

Source of the reference: facebookresearch/mae util/datasets.py, main_pretrain.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from mae_bench.job import write_atomically
from mae_bench.provenance import cpu_model
from tasks.data.images import ImageDataset, training_transform
from tasks.data.labelled import read_imagefolder
from tasks.data.verify import verify

SIZE, BATCH, CLASSES = 224, 64, 10
LONG_SIDE, SHORT_SIDE = 500, 375
SEED = 0


def draw(path: Path, seed: int) -> None:
    """A picture of 500 x 375 px with detail at every scale, about 100 KB, as photographs have."""
    rng = np.random.default_rng(seed)
    image = np.zeros((SHORT_SIDE, LONG_SIDE, 3), np.float32)
    for cells in (4, 16, 64, 190):
        noise = rng.normal(0, 1, (cells * 3 // 4, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (LONG_SIDE, SHORT_SIDE), interpolation=cv2.INTER_CUBIC) * 22
    pixels = np.clip(image + 120, 0, 255).astype(np.uint8)
    path.write_bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())


def make(root: Path, images: int) -> None:
    """An ImageNet-like tree; a tenth of the images is for validation."""
    for k in range(images):
        split = "val" if k % 10 == 9 else "train"
        folder = root / "imagenet" / split / f"n{k // 10 % CLASSES:02}"
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder / f"{k}.JPEG", k)


def reference(root: Path, scale: tuple[float, float]) -> Dataset:
    """torchvision's ImageFolder and transforms."""
    steps = [
        transforms.RandomResizedCrop(SIZE, scale, interpolation=InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ]
    return ImageFolder(str(root / "imagenet" / "train"), transforms.Compose(steps))


def ours(root: Path, scale: tuple[float, float]) -> Dataset:
    """What pretraining and classification train on."""
    found = read_imagefolder(root / "imagenet", "train")
    return ImageDataset(found.paths, found.labels, training_transform(SIZE, scale))


class Epochs:
    """Epochs of a set by a loader whose workers stay; the first one is not counted."""

    def __init__(self, dataset: Dataset, workers: int):
        generator = torch.Generator().manual_seed(SEED)
        sampler = RandomSampler(dataset, generator=generator)
        self.loader = DataLoader(
            dataset, BATCH, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
        )
        self.seconds()

    def seconds(self) -> float:
        """Time of one epoch, from the first request to the last batch."""
        started = time.perf_counter()
        for _ in self.loader:
            pass
        return time.perf_counter() - started


def cpu_seconds(dataset: Dataset, rounds: int) -> float:
    """CPU time an image, batches included, without workers: the machine's load hardly shows."""
    loader = DataLoader(dataset, BATCH, sampler=range(min(len(dataset), 4 * BATCH)))
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        images = sum(
            len(batch[0] if isinstance(batch, list) else batch["images"]) for batch in loader
        )
        taken.append((time.process_time() - started) / images)
    return min(taken)


def difference(root: Path, scale: tuple[float, float]) -> float:
    """Mean distance of the two images of the same crops, in grey levels of 255."""
    boxes = transforms.RandomResizedCrop.get_params
    both = reference(root, scale), ours(root, scale)
    deviation = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    distances = []
    for index in range(20):
        images = []
        for dataset in both:
            crop, flip, *_ = dataset.transform.transforms
            # Each library draws boxes from a generator of its own.
            crop.get_params = lambda image, scale, ratio: boxes(image, list(scale), list(ratio))
            flip.p = 0.0
            torch.manual_seed(index)
            item = dataset[index]
            images.append(item["images"] if isinstance(item, dict) else item[0])
        distances.append(((images[0] - images[1]) * deviation).abs().mean().item() * 255)
    return statistics.fmean(distances)


def moments(dataset: Dataset) -> tuple[float, float]:
    """Mean and deviation of the pixels of some hundred images."""
    total, squares, count = 0.0, 0.0, 0
    torch.manual_seed(SEED)
    random.seed(SEED)
    for index in range(min(len(dataset), 500)):
        item = dataset[index]
        image = item["images"] if isinstance(item, dict) else item[0]
        total, squares = total + image.sum().item(), squares + image.square().sum().item()
        count += image.numel()
    mean = total / count
    return mean, (squares / count - mean**2) ** 0.5


def compare_loading(root: Path, scale: tuple[float, float], workers: int, rounds: int) -> Any:
    """Images per second of both, a round of one and a round of the other in turn."""
    sets = {"torchvision": reference(root, scale), "ours": ours(root, scale)}
    times: dict[str, list[float]] = {name: [] for name in sets}
    epochs = {name: Epochs(dataset, workers) for name, dataset in sets.items()}
    for _ in range(rounds):
        for name in sets:
            times[name].append(epochs[name].seconds())
    best = {name: len(sets[name]) / min(taken) for name, taken in times.items()}
    typical = {name: len(sets[name]) / statistics.median(taken) for name, taken in times.items()}
    cpu = {name: cpu_seconds(dataset, rounds) for name, dataset in sets.items()}
    return {
        "scale": scale,
        "cpu_seconds_per_image": cpu,
        "cpu_time": cpu["torchvision"] / cpu["ours"],
        "images_per_second": typical,
        "best_images_per_second": best,
        "speed": typical["ours"] / typical["torchvision"],
        "best_speed": best["ours"] / best["torchvision"],
        "difference_grey_levels": difference(root, scale),
        "moments": {name: moments(dataset) for name, dataset in sets.items()},
    }


def moments_of(result: dict[str, Any]) -> str:
    """The moments of both, for people."""
    ours, theirs = (result["moments"][name] for name in ("ours", "torchvision"))
    return f"{ours[0]:.3f}, {ours[1]:.3f} and {theirs[0]:.3f}, {theirs[1]:.3f}"


def _decode(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _read(path: Path) -> int:
    return len(path.read_bytes())


def all_files(paths: list[Path], work: Callable[[Path], Any], workers: int) -> float:
    """Seconds to do something with every file once, in processes that are there already."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(_read, paths[: 10 * workers]))
        started = time.perf_counter()
        for _ in pool.map(work, paths, chunksize=64):
            pass
        return time.perf_counter() - started


def multiply(root: Path, files: int) -> None:
    """Give the files further names, until there are so many; those of val stay in val."""
    originals = sorted((root / "imagenet").rglob("*.JPEG"))
    for k in range(files - len(originals)):
        original = originals[k % len(originals)]
        os.link(original, original.with_name(f"{k}-{original.name}"))


def compare_verification(root: Path, workers: int, rounds: int, files: int) -> dict[str, Any]:
    """Seconds of `data verify` beside decoding, and beside only reading, every file once."""
    multiply(root, files)
    paths = sorted((root / "imagenet").rglob("*.JPEG"))
    taken: dict[str, list[float]] = {"verify": [], "decode": [], "read": []}
    for _ in range(rounds):
        started = time.perf_counter()
        report = verify("imagenet", root, subset=True, workers=workers)
        taken["verify"].append(time.perf_counter() - started)
        assert report.files_read == len(paths) and not report.faults
        taken["decode"].append(all_files(paths, _decode, workers))
        taken["read"].append(all_files(paths, _read, workers))
    started = time.process_time()
    verify("imagenet", root, subset=True, workers=workers)
    between = time.process_time()
    for path in paths:
        _decode(path)
    cpu = {"verify": between - started, "decode": time.process_time() - between}
    seconds = {name: min(each) for name, each in taken.items()}
    return {"files": len(paths), "cpu_seconds": cpu, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--files", type=int, default=0, help="for data verify  [--images]")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, action="append", help="least area  [0.2 and 0.08]")
    parser.add_argument("--out", type=Path, help="JSON with everything measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.images} files, {options.workers} workers, {cpu_model()}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, options.images)
        size = sum(path.stat().st_size for path in root.rglob("*.JPEG")) / options.images / 1024
        print(f"JPEGs of {LONG_SIDE} x {SHORT_SIDE} px, {size:.0f} KB each")
        loading = [
            compare_loading(root, (scale, 1.0), options.workers, options.rounds)
            for scale in options.scale or [0.2, 0.08]
        ]
        verification = compare_verification(root, options.workers, options.rounds, options.files)
    for result in loading:
        typical = result["images_per_second"]
        print(
            f"crops of {result['scale'][0]:g} to 1: ours {typical['ours']:.0f} images/s, "
            f"torchvision {typical['torchvision']:.0f}: {result['speed']:.2f}x (best rounds "
            f"{result['best_speed']:.2f}x, CPU time {result['cpu_time']:.2f}x); "
            f"{result['difference_grey_levels']:.2f} grey levels apart on the same boxes; mean and "
            f"deviation {moments_of(result)}"
        )
    cpu = verification["cpu_seconds"]
    print(
        f"{verification['files']} files: data verify {verification['verify']:.2f} s, decoding each "
        f"once {verification['decode']:.2f} s, reading each once {verification['read']:.2f} s; CPU "
        f"{cpu['verify']:.2f} s and {cpu['decode']:.2f} s of decoding"
    )
    if options.out:
        about = {"options": {key: str(value) for key, value in vars(options).items()}}
        content = {**about, "cpu": cpu_model(), "loading": loading, "verify": verification}
        write_atomically(options.out, json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
