"""The figure of reconstructions: which pixels land where, files of MAE's own, odd images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.vit import patchify
from mae_bench.cli import main
from mae_bench.errors import UserError
from tasks.data.images import denormalise, evaluation_transform
from tasks.pretraining.checkpoints import load_pretrained, save_pretrained
from tasks.pretraining.mae import build
from tasks.pretraining.masking import random_masking
from tasks.pretraining.pictures import image_grid
from tasks.pretraining.visualize import visualize

DATA = {"image_size": 64}
MODEL = {"mask_ratio": 0.75, "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 2}


def mae_file(folder, target="norm-pixel"):
    """A random MAE in our own format."""
    torch.manual_seed(0)
    recipe = {"data": DATA, "model": {**MODEL, "target": target}}
    mae = build("vit_mini_patch8", DATA, recipe["model"], None)
    path = folder / "mae.safetensors"
    save_pretrained(mae, path, {"backbone": "vit_mini_patch8", "recipe": json.dumps(recipe)})
    return path


def published_file(folder, name="mae_visualize_vit_tiny.pth"):
    """The same weights in MAE's own layout, and the model they are from."""
    mae = load_pretrained(mae_file(folder, "pixel"))
    names = {"embed": "decoder_embed", "head": "decoder_pred", "pos_embed": "decoder_pos_embed"}
    names |= {"blocks": "decoder_blocks", "norm": "decoder_norm", "mask_token": "mask_token"}
    weights = dict(mae.encoder.state_dict())
    for key, value in mae.decoder.state_dict().items():
        first, dot, rest = key.partition(".")
        weights[names[first] + dot + rest] = value
    torch.save({"model": weights}, folder / name)
    return folder / name, mae


@pytest.fixture
def picture(tmp_path):
    rows, columns = np.mgrid[:64, :64]
    pixels = np.stack([rows * 4, columns * 4, (rows // 8 + columns // 8) % 2 * 200], 2)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_pixels_of_the_figure(picture, tmp_path):
    """Rows are original, masked, reconstruction, combined; a cell is 128 px, twice the image."""
    checkpoint = mae_file(tmp_path)
    notes = visualize(checkpoint, [picture], tmp_path / "figure.png", seed=2)
    figure = np.asarray(Image.open(tmp_path / "figure.png"))
    left = figure.shape[1] - 128 - 4
    rows = [figure[4 + 132 * i :][:128:2, left : left + 128 : 2] for i in range(4)]
    original = np.asarray(Image.open(picture))
    assert np.array_equal(rows[0], original)
    noise = torch.rand(1, 64, generator=torch.Generator().manual_seed(2))
    visible, masked = random_masking(noise, 0.75, (8, 8))
    image = evaluation_transform(64, 1.0)(Image.open(picture))[None]
    shown = load_pretrained(checkpoint).reconstruct(image, noise)
    for row, name in zip(rows[1:], ("masked", "reconstruction", "combined"), strict=True):
        expected = (shown[name][0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        assert np.array_equal(row, expected.astype(np.uint8))
    cells = patchify(torch.tensor(rows[1].copy()).permute(2, 0, 1)[None].float(), 8)[0]
    originals = patchify(torch.tensor(original.copy()).permute(2, 0, 1)[None].float(), 8)[0]
    assert torch.equal(cells[visible[0]], originals[visible[0]])
    grey = (denormalise(torch.zeros(1, 3, 1, 1)) * 255).round().flatten()
    assert (cells[masked[0]].view(-1, 3) == grey).all()
    assert notes == [
        "each predicted patch is shown with the mean and the variance of the original's"
    ]


@pytest.mark.parametrize("suffix", ["PNG", "png", "pdf", "svg"])
def test_formats_and_many_images_and_ratios(suffix, picture, tmp_path):
    out = tmp_path / f"figure.{suffix}"
    visualize(mae_file(tmp_path), [picture] * 9, out, [0.75, 0.9])
    content = out.read_bytes()
    start = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}[suffix.lower()]
    assert content.startswith(start)
    if suffix == "png":
        # Two bands of at most eight images, each with the originals and 3 rows per ratio.
        assert Image.open(out).height == 2 * (7 * 132 + 26) + 4 + 21
    if suffix == "svg":
        assert content.count(b"combined 90%") == 2 and content.count(b"<image") == 9 * 7
    visualize(mae_file(tmp_path), [picture] * 9, out, [0.75, 0.9])
    assert out.read_bytes() == content


def test_files_of_maes_own_layout(picture, tmp_path):
    path, mae = published_file(tmp_path)
    again = load_pretrained(path)
    for name, value in mae.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 64)
    ours, theirs = mae.reconstruct(images, noise), again.reconstruct(images, noise)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    guessed = visualize(path, [picture], tmp_path / "a.png")
    assert guessed == ["the file does not say what it predicts: taken as pixel"]
    told = visualize(path, [picture], tmp_path / "b.png", target="norm-pixel")
    assert len(told) == 1 and "variance of the original's" in told[0]
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_full_files_of_the_final_models_predict_normalised_pixels(tmp_path):
    path, _ = published_file(tmp_path, "mae_pretrain_vit_tiny_full.pth")
    assert type(load_pretrained(path).target).__name__ == "NormPixel"


def test_encoder_alone_is_refused(tmp_path):
    path, mae = published_file(tmp_path)
    torch.save({"model": mae.encoder.state_dict()}, path)
    with pytest.raises(UserError, match="has no decoder to visualise"):
        load_pretrained(path)


def test_decoder_that_does_not_fit_is_refused(tmp_path):
    path, _ = published_file(tmp_path)
    content = torch.load(path)
    content["model"]["decoder_pred.weight"] = torch.zeros(7, 64)
    torch.save(content, path)
    with pytest.raises(UserError, match="do not fit each other"):
        load_pretrained(path)


def test_wrong_target_is_refused(tmp_path):
    with pytest.raises(UserError, match="trained to predict norm-pixel, not pixel"):
        load_pretrained(mae_file(tmp_path), "pixel")
    path, _ = published_file(tmp_path)
    with pytest.raises(UserError, match="predicts pixel or norm-pixel"):
        load_pretrained(path, "pca")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask-ratio", "0"], "must keep at least one and remove at least one"),
        (["--mask-ratio", "0.75", "--mask-ratio", "1"], "must keep at least one"),
        (["--out", "figure.jpg"], "figures are written as .png, .pdf, .svg"),
        (["--out", "nowhere/figure.png"], "there is no folder nowhere"),
        (["thin.png"], "is 2000x3 px; sides of at most 1:20 can be shown"),
        (["broken.png"], "cannot read image"),
        (["missing.png"], "there is no such file"),
    ],
)
def test_bad_input_is_one_line(arguments, message, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mae_file(tmp_path)
    Image.new("RGB", (2000, 3)).save("thin.png")
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:90])
    out = [] if "--out" in arguments else ["--out", "figure.png"]
    command = ["visualize", "picture.png", "--checkpoint", "mae.safetensors", *out, *arguments]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.glob("figure*"))


def save_grey(image, path):
    image.convert("L").save(path)


def save_cmyk(image, path):
    image.convert("CMYK").save(path.with_suffix(".jpg"), quality=100)
    return path.with_suffix(".jpg")


def save_16_bit(image, path):
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path)


def save_animated(image, path):
    frames = [Image.new("RGB", image.size, "white")]
    image.save(path.with_suffix(".gif"), save_all=True, append_images=frames)
    return path.with_suffix(".gif")


def save_rotated(image, path):
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned: the viewer has to rotate by 90 degrees clockwise
    image.rotate(90, expand=True).save(path.with_suffix(".jpg"), exif=exif, quality=100)
    return path.with_suffix(".jpg")


@pytest.mark.parametrize("save", [save_grey, save_cmyk, save_16_bit, save_animated, save_rotated])
def test_odd_images_are_shown_as_they_look(save, tmp_path):
    rows, columns = np.mgrid[:64, :64]
    smooth = np.stack([rows * 3, columns * 3, rows + columns], 2).astype(np.uint8)
    image = Image.fromarray(smooth)
    path = save(image, tmp_path / "odd.png") or tmp_path / "odd.png"
    visualize(mae_file(tmp_path), [path], tmp_path / "figure.png")
    figure = np.asarray(Image.open(tmp_path / "figure.png"))
    shown = figure[4:132:2, -132:-4:2].astype(int)
    expected = image.convert("L").convert("RGB") if save in {save_grey, save_16_bit} else image
    # JPEG, palettes and CMYK cost a few levels.
    assert np.abs(shown - np.asarray(expected)).mean() < 6


def test_figure_without_notes_is_as_wide_as_its_images(tmp_path):
    image_grid([torch.rand(3, 3, 32, 32)], ["a"], tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (110 + 3 * 132, 136)


def test_notes_are_not_cut_off(tmp_path):
    rows, note = [torch.zeros(1, 3, 128, 128)], "known of these pixels: " * 6
    image_grid(rows, ["title"], tmp_path / "plain.png")
    image_grid(rows, ["title"], tmp_path / "noted.png", notes=[note])
    plain, noted = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("plain", "noted"))
    below = noted[len(plain) :]
    assert noted.shape[1] == plain.shape[1] and np.array_equal(noted[: len(plain)], plain)
    assert (below.min(axis=(0, 2))[-6:] == 255).all(), "no line reaches the edge"
    assert len(below) > 3 * 13, "a long note has several lines"
