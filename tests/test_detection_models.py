"""Detectors of the protocols, small: the encoder written out, faults in it, odd image sizes."""

import pytest
import torch
from test_dense import naive_attention, naive_bias
from tiny_detection import composed, prepare

from backbones import attention, create_backbone, vit

# isort: split
from detectron2.config import instantiate
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("coco"))


# --- the encoder of the protocol, and faults in it -----------------------------------------------


def naive_taps(encoder, images):
    """Maps after each quarter: pre-norm blocks, windows, shared biases; written out."""
    grid = encoder.grid_of(images)
    x, taps = encoder.embed(images), []
    for index, block in enumerate(encoder.blocks):
        window, table = block.attn.window_size, encoder.rel_pos_bias
        if window:
            bias = naive_bias(
                encoder.window_rel_pos_bias.relative_position_bias_table, (window, window)
            )
            attended = naive_attention(block.attn, block.norm1(x), grid, bias)
        else:
            n, (b, length, width) = block.attn.num_heads, x.shape
            q, k, v = (
                block.attn.qkv(block.norm1(x)).view(b, length, 3, n, -1).permute(2, 0, 3, 1, 4)
            )
            logits = q @ k.transpose(2, 3) / (width / n) ** 0.5
            logits = logits + naive_bias(table.relative_position_bias_table, grid)
            mixed = (logits.softmax(3) @ v).transpose(1, 2).reshape(b, length, width)
            attended = block.attn.proj(mixed)
        x = x + attended
        x = x + block.mlp(block.norm2(x))
        if index % 2:
            taps.append(x.transpose(1, 2).unflatten(2, grid))
    return taps


def protocol_encoder():
    torch.manual_seed(4)
    encoder = create_backbone(
        "vit_mini_patch8",
        depth=8,
        img_size=40,
        window_size=3,
        relative_positions="shared",
        relative_img_size=(40, 32),
    )
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


@torch.no_grad()
def distance_to_naive():
    """Largest relative difference on a grid that is neither square nor whole windows."""
    encoder, images = protocol_encoder(), torch.randn(2, 3, 40, 32)
    taps = encoder.forward_maps(images, (1, 3, 5, 7))
    pairs = zip(taps, naive_taps(encoder, images), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def test_the_encoder_is_the_one_written_out():
    assert distance_to_naive() < 1e-5


def test_a_transposed_relative_bias_is_caught(monkeypatch):
    straight = vit.relative_bias
    monkeypatch.setattr(vit, "relative_bias", lambda *given: straight(*given).transpose(1, 2))
    assert distance_to_naive() > 1e-2


def test_a_norm_after_the_branch_is_caught(monkeypatch):
    def post_norm(self, x, grid=None, bias=None):
        x = self.norm1(x + self.attn(x, grid, bias))
        return self.norm2(x + self.mlp(x))

    monkeypatch.setattr(vit.Block, "forward", post_norm)
    assert distance_to_naive() > 1e-2


def test_windows_shifted_by_one_are_caught(monkeypatch):
    straight = attention.to_windows

    def shifted(x, size):
        return straight(x.roll(1, dims=1), size)

    monkeypatch.setattr(attention, "to_windows", shifted)
    assert distance_to_naive() > 1e-2


# --- whole detectors, small ----------------------------------------------------------------------

SMALL = {
    "data.image_size": 96,
    "model.window_size": 4,
    "model.fpn_channels": 32,
    "model.box_fc": 32,
    "model.anchor_sizes": [8, 16, 32, 64, 96],
    "model.pre_nms": 100,
    "model.post_nms": 20,
    "model.roi_samples": 8,
    "test.pre_nms": 100,
    "test.post_nms": 20,
    "test.score_threshold": 0.0,
    "solver.iterations": 2,
    "solver.warmup_iterations": 1,
    "solver.amp": None,
}
KINDS = {
    "li": ("li", "vit_tiny_patch16", SMALL),
    "li, beit": ("li", "vit_tiny_patch16", SMALL | {"model.qkv_bias": "qv"}),
    "rpn norm": ("li", "vit_tiny_patch16", SMALL | {"model.rpn_norm": "SyncBN"}),
    "vitdet": ("vitdet", "vit_tiny_patch16", SMALL),
    "cascade": ("vitdet", "vit_tiny_patch16", SMALL | {"model.cascade": True}),
    "convolutional": ("li", "timm:resnet18", SMALL),
    "hierarchical": ("li", "timm:swin_tiny_patch4_window7_224", SMALL | {"model.drop_path": 0.1}),
    "timm's ViT": ("li", "timm:vit_tiny_patch16_224", SMALL),
}


@pytest.mark.parametrize("kind", KINDS)
def test_odd_sizes_give_finite_losses_and_boxes_inside(root, kind):
    """Two images of odd sizes in training; in evaluation, one whose original is larger."""
    recipe, backbone, changes = KINDS[kind]
    model = instantiate(
        composed(recipe, backbone, dataset="mini-coco", data_root=root, **changes)["model"]
    )
    batch = [
        with_object(torch.randint(0, 255, (3, 50, 77), dtype=torch.uint8)),
        with_object(torch.randint(0, 255, (3, 96, 31), dtype=torch.uint8)),
    ]
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    item = {"image": batch[0]["image"], "height": 333, "width": 513}
    with torch.no_grad():
        found = model.eval()([item])[0]["instances"]
    assert found.image_size == (333, 513) and len(found) > 0
    boxes = found.pred_boxes.tensor
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 513 and boxes[:, 3].max() <= 333
    assert found.pred_masks.shape[1:] == (333, 513)


def with_object(image):
    height, width = image.shape[1:]
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, 10:30, 5:25] = True
    objects = Instances((height, width))
    objects.gt_boxes = Boxes(torch.tensor([[5.0, 10, 25, 30]]))
    objects.gt_classes = torch.tensor([0])
    objects.gt_masks = BitMasks(mask)
    return {"image": image, "instances": objects}
