"""Classifier heads: pooling, freezing, and what the probe may change."""

import pytest
import torch

from backbones import create_backbone
from backbones.checkpoints import fingerprint
from mae_bench.errors import UserError
from tasks.classification import Classifier


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(6, 3, 64, 64)


def make(**options):
    torch.manual_seed(0)
    return Classifier(create_backbone("vit_mini_patch8"), 5, **options)


def test_mean_pooling_norms_after_the_mean_and_drops_the_encoders_norm(images):
    model = make(pool="mean").eval()
    maps = model.encoder.forward_maps(images, (3,))[0]
    expected = torch.nn.functional.layer_norm(maps.mean((2, 3)), (96,), eps=1e-6)
    torch.testing.assert_close(model.norm(model.features(images)), expected, atol=1e-5, rtol=1e-5)
    assert not any(name.startswith("encoder.norm") for name, _ in model.named_parameters())


def test_token_pooling_is_the_class_token_after_the_norm(images):
    model = make(pool="token").eval()
    expected = model.encoder.forward_features(images)[:, 0]
    assert torch.equal(model.features(images), expected)


def test_frozen_means_frozen(images):
    model = make(frozen=True, head_std=0.01)
    before = fingerprint(model.encoder.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(images, torch.arange(6) % 5)["loss"].backward()
    optimizer.step()
    assert fingerprint(model.encoder.state_dict()) == before
    assert all(p.grad is None for p in model.encoder.parameters())
    assert isinstance(model.norm, torch.nn.BatchNorm1d) and not model.norm.affine
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
    }


def test_fine_tuning_trains_everything(images):
    model = make(pool="mean", head_std=0.01)
    model(images, torch.arange(6) % 5)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_smoothed_loss_against_the_formula(images):
    model = make(smoothing=0.1, head_std=1.0).eval()
    labels = torch.arange(6) % 5
    logs = model(images, labels, mode="predict")["logits"].log_softmax(1)
    truth = torch.full((6, 5), 0.1 / 5).scatter(1, labels[:, None], 1 - 0.1 + 0.1 / 5)
    expected = -(truth * logs).sum(1).mean()
    torch.testing.assert_close(model(images, labels)["loss"], expected, atol=1e-5, rtol=1e-5)


def test_unknown_pooling():
    with pytest.raises(UserError, match=r"unknown pooling 'max'.*Known: mean, token"):
        make(pool="max")
