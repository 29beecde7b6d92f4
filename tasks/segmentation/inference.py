"""Test-time inference: windows in batches, several scales and flips, one image at a time.

Shapes: B batch, K classes, H W px of an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder, SegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

# A GPU wants them together; on a CPU that only takes memory.
WINDOWS = {"cuda": 8, "cpu": 1}

Window = tuple[slice, slice]


@MODELS.register_module()
class Segmentor(EncoderDecoder):
    """mmseg's EncoderDecoder with sliding windows in batches.

    `test_cfg.windows` says how many go through the model at once; None for the device's own number.
    """

    def test_step(self, data: Mapping[str, Any]) -> list[SegDataSample]:
        """A batch as collated -> predictions. Never compiled: images come in many sizes."""
        return self.predict(**self.data_preprocessor(data, False))

    def slide_inference(self, inputs: Tensor, batch_img_metas: Sequence[Mapping]) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, K, H, W), averaged where windows overlap.

        Places as in mmseg: the last window of a row or column ends at the border.
        """
        batch, _, *size = inputs.shape
        logits = inputs.new_zeros(batch, self.out_channels, *size)
        count = inputs.new_zeros(1, 1, *size)
        at_once = self.test_cfg.get("windows") or WINDOWS.get(inputs.device.type, 1)
        for places in _batches(windows(size, **_settings(self.test_cfg)), at_once):
            for (y, x), part in zip(places, self._window_logits(inputs, places), strict=True):
                logits[..., y, x] += part
                count[..., y, x] += 1
            del part  # the next windows need its memory
        return logits.div_(count)

    def _window_logits(self, inputs: Tensor, places: Sequence[Window]) -> Sequence[Tensor]:
        """One for each place, (B, K, h, w)."""
        crops = torch.cat([inputs[..., y, x] for y, x in places])
        logits = self.encode_decode(crops, [{"img_shape": crops.shape[2:]}])
        return logits.split(len(inputs))


def _settings(test_cfg: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    return {"crop": test_cfg["crop_size"], "stride": test_cfg["stride"]}


def windows(size: Sequence[int], crop: Sequence[int], stride: Sequence[int]) -> list[Window]:
    """Places of the windows on an image, row by row; all (height, width)."""
    axes = []
    for length, side, step in zip(size, crop, stride, strict=True):
        side = min(side, length)
        starts = [min(i * step, length - side) for i in range(-(-(length - side) // step) + 1)]
        axes.append([slice(start, start + side) for start in starts])
    return list(itertools.product(*axes))


def _batches(items: Sequence[Window], size: int) -> Iterator[Sequence[Window]]:
    yield from (items[first : first + size] for first in range(0, len(items), size))


@MODELS.register_module()
class MultiScaleFlip(SegTTAModel):
    """Class probabilities averaged over scaled and flipped views of an image.

    mmseg's holds the logits of all views, which for an image of 4 megapixels and 150 classes are
    29 GB; here there is a running sum.
    """

    def test_step(self, data: Mapping[str, Sequence[Any]]) -> list[SegDataSample]:
        """Views as mmcv's `TestTimeAug` and a collate make them, of one image -> its prediction."""
        views = [dict(zip(data, view, strict=True)) for view in zip(*data.values(), strict=True)]
        total, sample = None, None
        for view in views:
            sample = self.module.test_step(view)[0]
            probabilities = sample.seg_logits.data.softmax(dim=0)
            total = probabilities if total is None else total.add_(probabilities)
        sample.pred_sem_seg = PixelData(data=total.argmax(dim=0, keepdim=True))
        return [sample]
