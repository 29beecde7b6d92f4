"""Files are read without running anything in them; damage is one clear error."""

import argparse
import contextlib
import pickle
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backbones import create_backbone
from backbones.checkpoints import load_backbone
from backbones.containers import read_contents
from backbones.load_report import fingerprint
from mae_bench.errors import UserError

CONTENT = {"model": {"w": torch.arange(200.0)}, "args": argparse.Namespace(lr=np.float64(1e-3))}


class Payload:
    """Unpickled, it would leave a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def write(path, kind):
    if kind == "torch":
        torch.save(CONTENT, path)
    elif kind == "old torch":
        torch.save(CONTENT, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(dict(CONTENT["model"]), path)
    elif kind == "npz":
        np.savez(path, w=np.arange(200, dtype=">f4"))
    else:
        with path.open("wb") as file:
            arrays = {"w": np.arange(200, dtype=np.float32), "scale": np.float32(2)}
            pickle.dump({"model": arrays}, file, protocol=int(kind[-1]))
    return path


KINDS = ["torch", "old torch", "safetensors", "npz", *(f"pickle {n}" for n in range(2, 6))]


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_files_whatever_the_suffix(kind, tmp_path):
    tree = read_contents(write(tmp_path / "file.npz", kind)).tree
    value = tree.get("model", tree)["w"]
    assert value.dtype == torch.float32 and torch.equal(value, torch.arange(200.0))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_refused(kind, share, tmp_path):
    path = write(tmp_path / "file.npz", kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"truncated or damaged|is no file of weights|is refused"):
        read_contents(path)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_is_one_error_or_another_value(kind, tmp_path):
    """Bytes changed or cut off at random, most of them where names and sizes are."""
    path, random = write(tmp_path / "file.npz", kind), Random(0)
    content = path.read_bytes()
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(random.choice((1, 4, 20))):
            side = random.choice((len(damaged), 400))
            damaged[random.choice((1, -1)) * random.randrange(1, side)] = random.randrange(256)
        path.write_bytes(damaged[: random.choice((len(damaged), random.randrange(len(damaged))))])
        with contextlib.suppress(UserError):
            read_contents(path)


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle", "array"])
def test_no_code_is_run(kind, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "file.pth"
    content = {"model": {"w": torch.ones(2)}, "extra": Payload(marker)}
    if kind == "pickle":
        with path.open("wb") as file:
            pickle.dump({"model": {"w": np.ones(2)}, "extra": Payload(marker)}, file)
    elif kind == "array":
        np.savez(path.with_suffix(".npz"), w=np.array([Payload(marker)], dtype=object))
        path = path.with_suffix(".npz")
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    model = create_backbone("vit_mini_patch8")
    before = fingerprint(model.state_dict())
    for format in (None, "mae"):
        with pytest.raises(UserError, match="is refused: reading it would run code"):
            load_backbone(model, path, format)
    assert not marker.exists()
    assert fingerprint(model.state_dict()) == before
    if kind == "pickle":  # the payload is a real one
        with path.open("rb") as file:
            pickle.load(file)["extra"].close()
        assert marker.exists()


def test_whole_models_and_programs_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(UserError, match=r"run code .*torch.nn.modules.linear.Linear"):
        read_contents(path)
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    with pytest.raises(UserError, match=r"run code .*TorchScript"):
        read_contents(path)


def test_mmengines_training_files_are_read(tmp_path):
    from mmengine.logging import HistoryBuffer

    log = {"log_scalars": {"loss": HistoryBuffer([1.0, 2.0], [1, 1])}}
    path = tmp_path / "iter_2.pth"
    torch.save({"state_dict": {"w": torch.ones(2)}, "message_hub": log}, path)
    assert torch.equal(read_contents(path).tree["state_dict"]["w"], torch.ones(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"hello world, no weights", "is no file of weights"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_contents(path)


def test_folders_lone_tensors_and_lone_arrays_are_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_contents(tmp_path)
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="holds a Tensor; a dict"):
        read_contents(tmp_path / "tensor.pth")
    np.save(tmp_path / "array.npy", np.ones(2))
    with pytest.raises(UserError, match="one NumPy array"):
        read_contents(tmp_path / "array.npy")
