"""What mmseg's pipelines lack: loading once, and refusing maps that do not fit the class list."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmseg.registry import TRANSFORMS

from mae_bench.errors import UserError

IGNORED = 255


@TRANSFORMS.register_module()
class CachedLoading:
    """Loading transforms whose result is kept in memory, by image.

    Args:
        transforms: mmseg transforms without anything random.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]]):
        self.load = Compose(transforms)
        self._loaded: dict[str, dict[str, Any]] = {}

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return the loaded sample, the caller's to change."""
        path = results["img_path"]
        if path not in self._loaded:
            self._loaded[path] = self.load(results)
        return copy.deepcopy(self._loaded[path])


@TRANSFORMS.register_module()
class CheckLabels:
    """Refuses a map with values that are no class, before the loss meets them.

    Args:
        num_classes: K; after the zero-label shift 0 to K - 1 and 255 (ignored) are allowed.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Check `gt_seg_map` (H, W) against the image and the class list."""
        labels, path = results["gt_seg_map"], results["seg_map_path"]
        if labels.shape != results["img"].shape[:2]:
            raise UserError(
                f"{path} is {labels.shape}, its image {results['img'].shape[:2]}; a map of one "
                "channel and of the image's size is needed"
            )
        wrong = np.unique(labels[(labels >= self.num_classes) & (labels != IGNORED)])
        if wrong.size:
            raise UserError(
                f"{path} holds the values {(wrong + 1).tolist()}; 0 (unlabelled) to "
                f"{self.num_classes} are allowed by its class list"
            )
        return results
