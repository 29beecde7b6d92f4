"""Our checkpoint format: loaded whole, or refused with a reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from backbones import create_backbone
from backbones.checkpoints import fingerprint, load_backbone, save_backbone
from mae_bench.errors import UserError

MISFIT = (
    r"\(mae-bench, odd\) does not fit this backbone: missing|is no mae-bench file: it does not know"
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = create_backbone("vit_mini_patch8")
    path = tmp_path / "backbone.safetensors"
    save_backbone(model, path, {"backbone": "vit_mini_patch8"})
    return model, path


def test_round_trip_is_lossless(saved):
    model, path = saved
    other = create_backbone("vit_mini_patch8")
    assert fingerprint(other.state_dict()) != fingerprint(model.state_dict())
    report = load_backbone(other, path)
    assert fingerprint(other.state_dict()) == fingerprint(model.state_dict()) == report.fingerprint
    assert set(report.loaded) == set(model.state_dict()) and not report.resized


def test_equal_weights_make_equal_files(saved, tmp_path):
    """Also in another process: nothing in the file is in the order of a hash table."""
    model, _ = saved
    about = {letter: letter.upper() for letter in "hgfedcba"}
    for name in ("first", "second"):
        save_backbone(model, tmp_path / name, about)
    first = (tmp_path / "first").read_bytes()
    assert first == (tmp_path / "second").read_bytes()
    size = int.from_bytes(first[:8], "little")
    header = list(json.loads(first[8 : 8 + size])["__metadata__"])
    assert size % 8 == 0 and header == sorted(header) and set(about) < set(header)


def test_positions_are_resized_and_reported(saved):
    _, path = saved
    other = create_backbone("vit_mini_patch8", img_size=(96, 64))
    report = load_backbone(other, path)
    assert report.resized == {"pos_embed": "(1, 65, 96) -> (1, 97, 96)"}


@pytest.mark.parametrize(
    "mutate",
    [
        lambda w: w.pop("cls_token"),
        lambda w: w.update({"blocks.0.attn.query.weight": w.pop("blocks.0.attn.qkv.weight")}),
        lambda w: w.update({"extra": torch.zeros(1)}),
    ],
    ids=["missing", "renamed", "extra"],
)
def test_keys_that_do_not_fit_are_refused(saved, mutate):
    model, path = saved
    weights = dict(model.state_dict())
    mutate(weights)
    header = {
        "format": "mae-bench",
        "grid": "8x8",
        "backbone": "odd",
        "fingerprint": fingerprint(weights),
    }
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata=header)
    other = create_backbone("vit_mini_patch8")
    before = fingerprint(other.state_dict())
    with pytest.raises(UserError, match=MISFIT):
        load_backbone(other, path)
    assert fingerprint(other.state_dict()) == before


def test_another_width_is_refused_with_both_shapes(saved):
    _, path = saved
    with pytest.raises(UserError, match=r"does not fit this backbone"):
        create_backbone("vit_tiny_patch16", checkpoint=path)


def test_changed_value_is_damage(saved):
    _, path = saved
    data = bytearray(path.read_bytes())
    data[-3] ^= 64
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load_backbone(create_backbone("vit_mini_patch8"), path)


def test_other_files_are_refused(tmp_path):
    model = create_backbone("vit_mini_patch8")
    with pytest.raises(UserError, match="no checkpoint at"):
        load_backbone(model, tmp_path / "missing.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("not weights")
    with pytest.raises(UserError, match="is no file of weights"):
        load_backbone(model, text)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(UserError, match="fits no known format"):
        load_backbone(model, foreign)
    assert load_file(foreign)["x"].item() == 0


def test_fingerprint_sees_names_shapes_types_and_values():
    base = {"a": torch.arange(6.0), "b": torch.tensor(1.0)}
    seen = {
        fingerprint(base),
        fingerprint({"c": base["a"], "b": base["b"]}),
        fingerprint({"a": base["a"].view(2, 3), "b": base["b"]}),
        fingerprint({"a": base["a"].double(), "b": base["b"]}),
        fingerprint({"a": base["a"], "b": torch.tensor(2.0)}),
    }
    assert len(seen) == 5
    assert fingerprint(dict(reversed(base.items()))) == fingerprint(base)
