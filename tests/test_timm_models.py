"""Models of timm as backbones, against timm itself."""

import copy

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from backbones import create_backbone, describe
from mae_bench.errors import UserError

PLAIN = ["test_vit", "deit_tiny_distilled_patch16_224", "xcit_nano_12_p16_224"]
PYRAMIDS = ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet18", "test_efficientnet"]


@pytest.fixture(scope="module", params=PLAIN + PYRAMIDS)
def backbone(request):
    torch.manual_seed(0)
    return create_backbone(f"timm:{request.param}").eval()


def dense(backbone, images, taps=(0, 2)):
    if hasattr(backbone, "forward_maps"):
        return backbone.forward_maps(images, taps)
    return backbone.forward_pyramid(images)


@pytest.mark.parametrize("size", [(64, 96), (63, 94)])
def test_maps_of_any_size(backbone, size):
    with torch.no_grad():
        maps = dense(backbone, torch.randn(2, 3, *size))
    if backbone.name in PLAIN:
        patch = backbone.patch_size
        shape = (2, backbone.embed_dim, -(-64 // patch), 96 // patch)
        assert [m.shape for m in maps] == [shape] * 2
    else:
        assert backbone.strides == (4, 8, 16, 32)
        for found, channels, stride in zip(
            maps, backbone.out_channels, backbone.strides, strict=True
        ):
            assert found.shape[:2] == (2, channels)
            # Each convnet rounds in its own way.
            assert all(
                abs(n - side / stride) < 1 for n, side in zip(found.shape[2:], size, strict=True)
            )


def test_names_weights_and_final_features_are_timms(backbone):
    theirs = timm.create_model(backbone.name, num_classes=0).eval()
    assert backbone.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(backbone(images), theirs.forward_features(images))


def test_layers_are_timms_groups(backbone):
    groups = param_groups_layer_decay(backbone.model, layer_decay=0.5)
    scales = {
        name: 0.5 ** (backbone.num_layers - backbone.layer_id(name)) for name in names(backbone)
    }
    by_identity = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scales == {name: by_identity[id(p)] for name, p in backbone.named_parameters()}
    assert {backbone.layer_id(name) for name in names(backbone)} == set(
        range(backbone.num_layers + 1)
    )


def names(module):
    return [name for name, _ in module.named_parameters()]


def test_what_is_not_frozen_gets_a_gradient(backbone):
    model = copy.deepcopy(backbone).train()
    assert model.model.training and model.model is not backbone.model
    model.freeze_unused((0, 2) if backbone.name in PLAIN else None)
    assert any(p.requires_grad for p in model.parameters())
    sum(m.square().mean() for m in dense(model, torch.randn(2, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18"])
def test_same_pyramid_as_timms_own_feature_extractor(name):
    ours = create_backbone(f"timm:{name}").eval()
    theirs = timm.create_model(name, features_only=True, pretrained=False).eval()
    values = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=False))
    theirs.load_state_dict(values)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(ours.forward_pyramid(images), theirs(images)[-4:], strict=True):
            assert torch.equal(a, b)


def test_same_maps_as_our_own_vit():
    """One architecture, two implementations, through the same interface."""
    theirs = create_backbone("timm:vit_tiny_patch16_224").eval()
    ours = create_backbone("vit_tiny_patch16").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        pairs = zip(
            ours.forward_maps(images, (2, 11)), theirs.forward_maps(images, (2, 11)), strict=True
        )
        for a, b in pairs:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (ours.depth, ours.patch_size, ours.embed_dim) == (
        theirs.depth,
        theirs.patch_size,
        theirs.embed_dim,
    )


def test_described_without_building():
    swin = describe("timm:swin_tiny_patch4_window7_224")
    assert (swin.channels, swin.strides) == ((96, 192, 384, 768), (4, 8, 16, 32))
    assert swin.parameters == 27_519_354 and swin.gflops == pytest.approx(4.49, abs=0.01)
    # What torchvision lists for it.
    assert describe("timm:resnet50").gflops == pytest.approx(4.09, abs=0.01)
    vit = describe("timm:vit_base_patch16_224")
    assert vit.gflops == pytest.approx(describe("vit_base_patch16").gflops, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_tny_patch4_window7_224", {}, "unknown timm model .* Did you mean timm:swin_tiny_pa"),
        ("resnet18", {"window": 3}, "timm:resnet18 does not take the options"),
    ],
)
def test_bad_names_and_options(name, options, message):
    with pytest.raises(UserError, match=message):
        create_backbone(f"timm:{name}", **options)


def test_a_size_that_the_model_cannot_take():
    model = create_backbone("timm:test_vit_relpos").eval()
    with pytest.raises(UserError, match=r"does not work on images of 96x160 px .* \(160 px unless"):
        model.forward_maps(torch.randn(1, 3, 96, 160), (1,))
    model = create_backbone("timm:test_vit_relpos", img_size=(96, 160)).eval()
    assert model.forward_maps(torch.randn(1, 3, 96, 160), (1,))[0].shape[-2:] == (6, 10)


def test_maps_beside_the_strides_that_timm_names_are_refused():
    model = create_backbone("timm:inception_v3").eval()  # its convolutions leave out the border
    with torch.no_grad(), pytest.raises(UserError, match=r"names stride \d+ for a map that is"):
        model.forward_pyramid(torch.randn(1, 3, 160, 160))
