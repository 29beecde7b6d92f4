"""Heads, windows, views and scores against plain formulas and mmseg's own."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, SegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from tasks.segmentation import building
from tasks.segmentation.heads import convolve_enlarged
from tasks.segmentation.inference import MultiScaleFlip, Segmentor, windows
from tasks.segmentation.scores import Scores, confusion

pytestmark = pytest.mark.mmseg


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((3, 5), (7, 20)), ((1, 2), (5, 4))])
def test_convolving_before_enlarging_changes_nothing(old, new, align_corners):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *old, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)

    def plain(align_corners):
        enlarged = F.interpolate(x, new, mode="bilinear", align_corners=align_corners)
        return F.conv2d(enlarged, kernel, padding=1)

    expected, found = plain(align_corners), convolve_enlarged(x, kernel, new, align_corners)
    # The interpolation's weights are computed in fp32.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(
        *(torch.autograd.grad(out.square().sum(), (x, kernel)) for out in (found, expected)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain(not align_corners), found, atol=1e-2)


def heads(kind, **options):
    """mmseg's head and the lean one with the same weights, in fp64."""
    with building():
        pair = [
            MODELS.build(
                dict(
                    type=f"{lean}{kind}",
                    channels=6,
                    num_classes=7,
                    dropout_ratio=0.0,
                    norm_cfg=dict(type="BN"),
                    align_corners=False,
                    loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4),
                    **options,
                )
            ).double()
            for lean in ("", "Lean")
        ]
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


def labelled(*labels):
    samples = []
    for each in labels:
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=each[None])
        samples.append(sample)
    return samples


KINDS = {
    "UPerHead": dict(in_channels=[3, 4, 5, 6], in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3)),
    "FCNHead": dict(in_channels=5, in_index=2, num_convs=1, concat_input=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_lean_heads_equal_mmsegs(kind):
    """Outputs, loss and every gradient; some pixels ignored; sides that are no powers of two."""
    torch.manual_seed(0)
    theirs, ours = heads(kind, **KINDS[kind])
    maps = [
        torch.randn(2, channels, 24 // 2**level, 40 // 2**level, dtype=torch.float64)
        for level, channels in enumerate((3, 4, 5, 6))
    ]
    labels = torch.randint(0, 7, (2, 90, 150))
    labels[0, :50] = 255
    results = []
    for head in (theirs, ours):
        inputs = [x.clone().requires_grad_() for x in maps]
        loss = head.loss(inputs, labelled(*labels), {})["loss_ce"]
        loss.backward()
        used = [x.grad for x in inputs if x.grad is not None]
        results.append((head(inputs), loss, *used, *(p.grad for p in head.parameters())))
    assert len(results[0]) == len(results[1])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5, check_dtype=False)


def test_ignored_pixels_change_no_gradient_but_count_in_the_mean():
    _, ours = heads("FCNHead", **KINDS["FCNHead"])
    logits = torch.randn(1, 7, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 7, (4, 4))
    whole = ours.loss_by_feat(logits, labelled(labels))["loss_ce"]
    half = labels.clone()
    half[:2] = 255
    parts = [half, torch.where(half == 255, labels, 255)]
    summed = sum(ours.loss_by_feat(logits, labelled(part))["loss_ce"] for part in parts)
    assert whole.item() == pytest.approx(summed.item(), rel=1e-6)
    # The mutation: 255 as one more class.
    ours.ignore_index = -100
    with pytest.raises(IndexError):
        ours.loss_by_feat(logits, labelled(half))


class Echo(Segmentor):
    """Logits that depend on a pixel and on where in its window it lies."""

    num_classes = out_channels = 3
    align_corners = False

    def __init__(self, **test_cfg):
        torch.nn.Module.__init__(self)
        self.test_cfg = ConfigDict(test_cfg)
        self.batches = []

    def encode_decode(self, inputs, batch_img_metas):
        assert tuple(batch_img_metas[0]["img_shape"]) == tuple(inputs.shape[2:])
        self.batches.append(len(inputs))
        rows = torch.arange(inputs.shape[2])[:, None] * 0.1
        return inputs * (1 + rows) + inputs.mean(dim=(2, 3), keepdim=True)


def naive_slide(model, image, crop, stride):
    """Window by window, as the words say."""
    height, width = image.shape[2:]
    total, count = torch.zeros_like(image), torch.zeros(height, width)
    tops = sorted({min(y, max(height - crop, 0)) for y in range(0, height, stride)})
    lefts = sorted({min(x, max(width - crop, 0)) for x in range(0, width, stride)})
    for top, left in itertools.product(tops, lefts):
        window = image[:, :, top : top + crop, left : left + crop]
        out = model.encode_decode(window, [dict(img_shape=window.shape[2:])])
        total[:, :, top : top + crop, left : left + crop] += out
        count[top : top + crop, left : left + crop] += 1
    return total / count


@pytest.mark.parametrize("size", [(8, 8), (8, 30), (19, 23), (5, 40), (6, 7)])
@pytest.mark.parametrize(("at_once", "stride"), [(1, 5), (3, 5), (50, 8), (None, 3)])
def test_windows_against_a_naive_loop_and_mmsegs(size, at_once, stride):
    torch.manual_seed(0)
    model = Echo(mode="slide", crop_size=(8, 8), stride=(stride, stride), windows=at_once)
    image = torch.randn(1, 3, *size)
    found = model.slide_inference(image, [dict(ori_shape=size)])
    batches, model.batches = model.batches, []
    assert max(batches) == min(at_once or 1, sum(batches))
    torch.testing.assert_close(found, naive_slide(model, image, 8, stride))
    theirs = EncoderDecoder.slide_inference(model, image, [dict(ori_shape=size)])
    torch.testing.assert_close(found, theirs)


def test_windows_cover_every_pixel_and_end_at_the_border():
    for places in (windows((512, 683), (512, 512), (341, 341)), windows((3, 900), (8, 8), (5, 5))):
        height, width = (max(axis.stop for axis in axes) for axes in zip(*places, strict=True))
        seen = np.zeros((height, width), int)
        for y, x in places:
            seen[y, x] += 1
        assert seen.min() == 1
    assert len(windows((512, 683), (512, 512), (341, 341))) == 2
    assert height == 3 and width == 900


class Views(torch.nn.Module):
    """A model whose logits are random but fixed for each view."""

    out_channels = 4

    def test_step(self, data):
        sample = SegDataSample()
        torch.manual_seed(data["inputs"][0])
        sample.seg_logits = PixelData(data=torch.randn(4, 5, 6))
        sample.set_metainfo({"img_path": "x.jpg"})
        return [sample]


def test_views_are_averaged_as_mmseg_does():
    views = {"inputs": [[1], [2], [3]], "data_samples": [["a"], ["b"], ["c"]]}
    predictions = [
        kind(module=Views()).test_step(views)[0].pred_sem_seg.data
        for kind in (SegTTAModel, MultiScaleFlip)
    ]
    assert torch.equal(predictions[0].view(5, 6), predictions[1].view(5, 6))
    last = torch.randn(4, 5, 6, generator=torch.manual_seed(3)).argmax(0)
    assert not torch.equal(predictions[1][0], last)


def naive(pairs, classes):
    matrix = [[0] * classes for _ in range(classes)]
    for truth, prediction in pairs:
        for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if t != 255:
                matrix[t][p] += 1
    return matrix


@pytest.fixture(scope="module")
def pairs():
    """Class 4 is only predicted, class 5 only true, class 6 appears nowhere."""
    random, found = np.random.default_rng(0), []
    for size in ((13, 40), (96, 96), (7, 7)):
        truth = random.choice([0, 1, 2, 3, 5, 255], size).astype(np.uint8)
        guess = random.choice(5, size)
        found.append((truth, np.where((random.random(size) < 0.4) & (truth < 4), truth, guess)))
    return found


def test_scores_equal_a_naive_confusion_matrix(pairs):
    matrix = naive(pairs, 7)
    total = sum(confusion(truth, prediction, 7) for truth, prediction in pairs)
    assert total.tolist() == matrix
    scores = Scores.of(total)
    ious, accuracies = [], []
    for k in range(7):
        row, column = sum(matrix[k]), sum(line[k] for line in matrix)
        union = row + column - matrix[k][k]
        ious.append(100 * matrix[k][k] / union if union else math.nan)
        accuracies.append(100 * matrix[k][k] / row if row else math.nan)
    assert scores.iou == pytest.approx(ious, abs=1e-12, nan_ok=True)
    assert scores.acc == pytest.approx(accuracies, abs=1e-12, nan_ok=True)
    right = sum(matrix[k][k] for k in range(7))
    assert scores.aacc == pytest.approx(100 * right / sum(map(sum, matrix)), abs=1e-12)
    assert scores.iou[4] == 0 and math.isnan(scores.acc[4])
    assert scores.iou[5] == scores.acc[5] == 0
    assert math.isnan(scores.iou[6]) and math.isnan(scores.acc[6])
    metrics = {name: metric.value for name, metric in scores.metrics().items()}
    assert metrics["miou"] == pytest.approx(sum(ious[:6]) / 6, abs=1e-12)
    assert metrics["macc"] == pytest.approx(sum(accuracies[i] for i in (0, 1, 2, 3, 5)) / 5)


def test_scores_are_those_of_mmsegs_metric(pairs):
    """To its two decimals; classes absent from truth, prediction or both included."""
    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": list("abcdefg")}
    for truth, prediction in pairs:
        maps = (("gt_sem_seg", truth.astype(np.int64)), ("pred_sem_seg", prediction))
        metric.process({}, [{key: {"data": torch.as_tensor(value)} for key, value in maps}])
    theirs = metric.compute_metrics(metric.results)
    ours = Scores.of(sum(confusion(*pair, 7) for pair in pairs)).metrics()
    for name, theirs_name in (("miou", "mIoU"), ("macc", "mAcc"), ("aacc", "aAcc")):
        assert ours[name].value == pytest.approx(theirs[theirs_name], abs=0.00501)


def test_counts_beyond_float32_are_exact():
    # 2^24 + 1 has no float32.
    many = np.array([[2**24 + 1, 1], [0, 2**24 + 1]])
    assert Scores.of(many + 0).iou[0] == pytest.approx(100 * (2**24 + 1) / (2**24 + 2), abs=1e-12)


def test_an_ignored_pixel_is_never_scored():
    truth = np.array([[0, 255], [1, 255]], np.uint8)
    right = confusion(truth, np.array([[0, 1], [1, 0]]), 2)
    assert right.tolist() == [[1, 0], [0, 1]]
