"""What mmseg's pipelines lack: maps that are checked as they are read, and loading only once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmengine.dataset import Compose
from mmseg.registry import TRANSFORMS

from tasks.data.maps import IGNORED, check_size, read_map, to_labels


@TRANSFORMS.register_module()
class LoadLabels:
    """Reads a map and turns its values into labels, in place of mmseg's `LoadAnnotations`.

    That one reads 16-bit maps modulo 256 and takes whatever values come. Here is the one place of
    the zero-label shift, in training and in evaluation.

    Args:
        num_classes, reduce_zero_label, ignore_value: see `tasks.data.maps.to_labels`.
    """

    def __init__(
        self, num_classes: int, reduce_zero_label: bool = True, ignore_value: int = IGNORED
    ):
        self.values = (num_classes, reduce_zero_label, ignore_value)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `gt_seg_map`, (H, W) of labels; H and W are those of the image as it was read.

        Raises:
            UserError: a map that cannot be read or does not fit, by its name.
        """
        path = results["seg_map_path"]
        values = read_map(path)
        check_size(values.shape, results["ori_shape"], path)
        num_classes, *rules = self.values
        results["gt_seg_map"] = to_labels(values, num_classes, path, *rules)
        results["seg_fields"].append("gt_seg_map")
        return results


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
