"""MAE, its targets and the tokenizer against naive formulas of the paper."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from backbones import create_backbone
from backbones.checkpoints import load_backbone, save_backbone
from backbones.vit import patchify
from mae_bench.errors import UserError
from tasks.data.images import denormalise, normalise_batch
from tasks.pretraining import INITS, TARGETS
from tasks.pretraining.checkpoints import (
    load_pretrained,
    save_pretrained,
    save_torch_file,
    start_from,
)
from tasks.pretraining.mae import build
from tasks.pretraining.masking import random_masking
from tasks.pretraining.targets import DvaeToken, NormPixel, Pca, Pixel
from tasks.pretraining.tokenizer import (
    Cooling,
    Tokenizer,
    TokenizerTraining,
    load_tokenizer,
    save_tokenizer,
)

DATA = {"image_size": 64}
MODEL = {
    "target": "norm-pixel",
    "mask_ratio": 0.75,
    "decoder_width": 32,
    "decoder_depth": 2,
    "decoder_heads": 4,
}


@pytest.fixture
def tokenizer():
    torch.manual_seed(1)
    return Tokenizer(stride=8, num_codes=16, width=32)


def make(tokenizer=None, **changes):
    torch.manual_seed(0)
    return build("vit_mini_patch8", DATA, {**MODEL, **changes}, tokenizer)


def published_loss(mae, images, noise):
    """The paper's definition, step by step: embed all, mask, encode, fill in, unshuffle, decode."""
    batch, length = noise.shape
    keep = int(length * (1 - mae.mask_ratio))
    tokens = mae.encoder.patch_embed.proj(images).flatten(2).transpose(1, 2)
    tokens = tokens + mae.encoder.pos_embed[:, 1:]
    shuffle = noise.argsort(1)
    restore = shuffle.argsort(1)
    visible = tokens.gather(1, shuffle[:, :keep, None].expand(-1, -1, tokens.shape[2]))
    cls_token = (mae.encoder.cls_token + mae.encoder.pos_embed[:, :1]).expand(batch, -1, -1)
    x = torch.cat([cls_token, visible], 1)
    for block in mae.encoder.blocks:
        x = block(x)
    x = mae.decoder.embed(mae.encoder.norm(x))
    filler = mae.decoder.mask_token.expand(batch, length - keep, -1)
    patches = torch.cat([x[:, 1:], filler], 1)
    patches = patches.gather(1, restore[..., None].expand(-1, -1, patches.shape[2]))
    x = torch.cat([x[:, :1], patches], 1) + mae.decoder.pos_embed
    for block in mae.decoder.blocks:
        x = block(x)
    prediction = mae.decoder.head(mae.decoder.norm(x))[:, 1:]
    mask = torch.ones(batch, length)
    mask[:, :keep] = 0
    mask = mask.gather(1, restore)
    target = patchify(images, 8)
    if type(mae.target) is NormPixel:
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6) ** 0.5
    per_patch = ((prediction - target) ** 2).mean(-1)
    return (per_patch * mask).sum() / mask.sum()


@pytest.mark.parametrize("target", ["pixel", "norm-pixel"])
@pytest.mark.parametrize("ratio", [0.75, 0.4])
def test_loss_equals_the_published_definition(target, ratio):
    mae = make(target=target, mask_ratio=ratio).eval()
    images, noise = torch.randn(3, 3, 64, 64), torch.rand(3, 64)
    ours = mae(images, noise=noise)["loss"]
    torch.testing.assert_close(ours, published_loss(mae, images, noise), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0.1, 176), (0.5, 98), (0.75, 49), (0.8, 39), (0.9, 19)]
)
def test_number_of_visible_patches_of_the_paper(ratio, kept):
    visible, masked = random_masking(torch.rand(2, 196), ratio, (14, 14))
    assert visible.shape[1] == kept
    both = torch.cat([visible, masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(196).expand(2, -1))


def test_small_noise_is_kept():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.2]])
    visible, masked = random_masking(noise, 0.5, (2, 2))
    assert visible.tolist() == [[1, 3]] and masked.tolist() == [[2, 0]]


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.999, -0.5])
def test_mask_ratio_that_keeps_all_or_nothing_is_refused(ratio):
    with pytest.raises(UserError, match="must keep at least one and remove at least one"):
        random_masking(torch.rand(1, 64), ratio, (8, 8))


def test_masked_patches_do_not_reach_the_encoder():
    mae = make().eval()
    images, noise = torch.randn(1, 3, 64, 64), torch.rand(1, 64)
    prediction, _, masked = mae.predict(images, noise)
    changed = images.clone()
    index = int(masked[0, 0])
    row, column = 8 * (index // 8), 8 * (index % 8)
    changed[:, :, row : row + 8, column : column + 8] += 5
    assert torch.equal(mae.predict(changed, noise)[0], prediction)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_trains_every_parameter(name, tokenizer):
    mae = make(tokenizer, target=name)
    mae(torch.randn(4, 3, 64, 64))["loss"].backward()
    for key, parameter in mae.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    frozen = {key for key, p in mae.named_parameters() if not p.requires_grad}
    assert {"encoder.pos_embed", "decoder.pos_embed"} <= frozen
    assert f"mae-{name}" in INITS


def test_norm_pixel_is_undone_for_display():
    patches = torch.randn(2, 5, 192) * 3 + 1
    target = NormPixel(8)
    masked = torch.tensor([[0, 3], [4, 1]])
    truth = target(torch.empty(0), patches, masked)
    torch.testing.assert_close(truth.mean(-1), torch.zeros(2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(truth.var(-1), torch.ones(2, 2), atol=1e-3, rtol=0)
    picked = torch.stack([patches[0, [0, 3]], patches[1, [4, 1]]])
    pixels = target.to_pixels(truth, torch.empty(0), patches, masked)
    torch.testing.assert_close(pixels, picked, atol=1e-4, rtol=1e-4)


def test_token_target_is_the_tokenizers_ids_and_cross_entropy(tokenizer):
    target = DvaeToken(8, tokenizer)
    images, masked = torch.randn(2, 3, 64, 64), torch.tensor([[5, 63], [0, 9]])
    truth = target(images, patchify(images, 8), masked)
    ids = tokenizer.encode(denormalise(images))
    assert truth.tolist() == [[ids[0, 0, 5], ids[0, 7, 7]], [ids[1, 0, 0], ids[1, 1, 1]]]
    prediction = torch.randn(2, 2, 16)
    expected = -prediction.log_softmax(-1).gather(-1, truth[..., None]).mean()
    torch.testing.assert_close(target.loss(prediction, truth), expected)


def test_predicted_tokens_are_shown_through_the_tokenizer(tokenizer):
    """Predicting the true ids shows the tokenizer's own reconstruction."""
    images, masked = torch.randn(2, 3, 64, 64), torch.tensor([[5, 63], [0, 9]])
    patches = patchify(images, 8)
    target = DvaeToken(8, tokenizer)
    perfect = F.one_hot(target(images, patches, masked), 16).float()
    shown = target.to_pixels(perfect, images, patches, masked)
    rebuilt = patchify(normalise_batch(tokenizer.reconstruct(denormalise(images))), 8)
    expected = torch.stack([rebuilt[0, [5, 63]], rebuilt[1, [0, 9]]])
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-5)


def test_tokenizer_round_trip(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(tokenizer, path, {})
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(load_tokenizer(path).encode(images), tokenizer.encode(images))
    with pytest.raises(UserError, match="has no decoder to visualise"):
        load_pretrained(path)


def test_token_target_without_tokenizer():
    with pytest.raises(UserError, match="needs a trained tokenizer"):
        DvaeToken(8)


def test_pca_coefficients_are_those_of_the_svd():
    """Of all patches, mean removed; a direction's sign is arbitrary."""
    torch.manual_seed(0)
    images = torch.randn(12, 3, 16, 16).cumsum(-1)
    target = Pca(4, None, {"pca_coefficients": 7})
    target.fit(images.split(5))
    patches = patchify(images, 4)
    centred = (patches.flatten(0, 1) - patches.flatten(0, 1).mean(0)).double()
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    coefficients = target(images, patches, torch.arange(16).expand(12, -1))
    expected = (centred @ directions[:7].T).float().view(12, 16, 7)
    torch.testing.assert_close(coefficients.abs(), expected.abs(), atol=1e-4, rtol=1e-4)
    share = values[:7].square().sum() / values.square().sum()
    assert float(target.explained) == pytest.approx(float(share), rel=1e-5)


@pytest.mark.parametrize("batches", [[torch.randn(1, 3, 8, 8)], []])
def test_pca_needs_more_patches_than_coefficients(batches):
    with pytest.raises(UserError, match=f"{4 * len(batches)} patches have no 7 directions"):
        Pca(4, None, {"pca_coefficients": 7}).fit(batches)


def test_pixel_loss_is_the_mean_over_masked_patches():
    target = Pixel(8)
    prediction, truth = torch.randn(2, 3, 192), torch.randn(2, 3, 192)
    naive = sum(
        float(((prediction[b, m] - truth[b, m]) ** 2).mean()) for b in range(2) for m in range(3)
    )
    assert float(target.loss(prediction, truth)) == pytest.approx(naive / 6, rel=1e-6)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_tokenizer_shapes(stride):
    model = Tokenizer(stride=stride, num_codes=12, width=32)
    images = torch.rand(2, 3, 32, 64)
    ids = model.encode(images)
    assert ids.shape == (2, 32 // stride, 64 // stride) and int(ids.max()) < 12
    assert model.reconstruct(images).shape == images.shape


def test_tokenizer_losses_against_the_formula():
    torch.manual_seed(0)
    model = Tokenizer(stride=4, num_codes=6, width=16)
    training = TokenizerTraining(model, prior=0.3)
    images = torch.randn(2, 3, 16, 16)
    torch.manual_seed(3)
    losses = training(images, labels=torch.zeros(2))
    q = model.logits(denormalise(images)).softmax(1)
    kl = (q * (q * 6).log()).sum(1).mean()
    torch.testing.assert_close(losses["loss_prior"], 0.3 * kl, atol=1e-6, rtol=1e-5)
    torch.manual_seed(3)
    soft = F.gumbel_softmax(model.logits(denormalise(images)), tau=1.0, dim=1)
    expected = F.mse_loss(model.decode(soft), denormalise(images))
    torch.testing.assert_close(losses["loss_reconstruction"], expected)


def test_temperature_is_a_function_of_the_step():
    """It does not count forward passes, of which a step may have several."""
    training = TokenizerTraining(Tokenizer(stride=4, num_codes=6, width=16), prior=0.3)
    cooling = Cooling(training, iterations=10, final=0.5)
    for step, expected in [(0, 1.0), (5, 0.5**0.5), (10, 0.5)]:
        cooling.before_train_iter(SimpleNamespace(iter=step), step)
        assert training.temperature == pytest.approx(expected)


@pytest.mark.parametrize("name", TARGETS)
def test_saved_mae_reconstructs_the_same(name, tokenizer, tmp_path):
    mae = make(tokenizer, target=name).eval()
    recipe = {"data": DATA, "model": {**MODEL, "target": name}}
    about = {"backbone": "vit_mini_patch8", "recipe": json.dumps(recipe)}
    save_pretrained(mae, tmp_path / "mae.safetensors", about)
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 64)
    ours = mae.reconstruct(images, noise)
    again = load_pretrained(tmp_path / "mae.safetensors").reconstruct(images, noise)
    assert list(ours) == ["original", "masked", "reconstruction", "combined"]
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_combined_picture_keeps_the_visible_patches():
    mae = make().eval()
    images, noise = torch.randn(1, 3, 64, 64), torch.rand(1, 64)
    shown = mae.reconstruct(images, noise)
    visible, _ = random_masking(noise, 0.75, (8, 8))
    original, combined = patchify(shown["original"], 8), patchify(shown["combined"], 8)
    kept = visible[0].tolist()
    torch.testing.assert_close(combined[0, kept], original[0, kept], atol=1e-6, rtol=0)
    others = [i for i in range(64) if i not in kept]
    assert (combined[0, others] - original[0, others]).abs().max() > 0.01


def test_torch_files_hold_the_same_weights_in_maes_layout(tmp_path):
    mae = make(target="pixel").eval()
    backbone = tmp_path / "backbone.safetensors"
    recipe = json.dumps({"data": DATA, "model": {**MODEL, "target": "pixel"}})
    about = {"backbone": "vit_mini_patch8", "run": "abc", "recipe": recipe}
    save_backbone(mae.encoder, backbone, about)
    save_torch_file(backbone, tmp_path / "backbone.pth")
    save_torch_file(backbone, tmp_path / "mae.pth", mae.decoder)
    for name in ("backbone.pth", "mae.pth"):
        content = torch.load(tmp_path / name, weights_only=True)
        assert content["mae_bench"]["run"] == "abc"
        for key, value in mae.encoder.state_dict().items():
            assert torch.equal(content["model"].pop(key), value)
        assert ("decoder_pred.weight" in content["model"]) == (name == "mae.pth")
    load_backbone(create_backbone("vit_mini_patch8", img_size=64), tmp_path / "backbone.pth")
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 64)
    read = load_pretrained(tmp_path / "mae.pth")
    assert torch.equal(read(images, noise=noise)["loss"], mae(images, noise=noise)["loss"])


def test_pretraining_starts_from_an_earlier_one(tokenizer, tmp_path):
    earlier, later = make(target="pixel"), make(target="pixel")
    about = {
        "backbone": "vit_mini_patch8",
        "recipe": json.dumps({"data": DATA, "model": {**MODEL, "target": "pixel"}}),
    }
    save_pretrained(earlier, tmp_path / "mae.safetensors", about)
    start_from(later, tmp_path / "mae.safetensors", "pixel")
    for name, value in earlier.state_dict().items():
        assert torch.equal(later.state_dict()[name], value)
    deeper = make(target="pixel", decoder_depth=3)
    with pytest.raises(UserError, match=r"cannot be continued by this recipe: decoder.blocks.2"):
        start_from(deeper, tmp_path / "mae.safetensors", "pixel")
    save_backbone(earlier.encoder, tmp_path / "backbone.safetensors", about)
    save_torch_file(tmp_path / "backbone.safetensors", tmp_path / "mae.pth", earlier.decoder)
    for file in ("mae.safetensors", "mae.pth"):
        with pytest.raises(UserError, match="was trained to predict pixel, not norm-pixel"):
            start_from(make(target="norm-pixel"), tmp_path / file, "norm-pixel")
