"""DALL-E's encoder: its arithmetic, and the published pickle read without running it."""

import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from backbones.vit import patchify
from mae_bench.errors import UserError
from tasks.data.images import normalise_batch
from tasks.pretraining.dalle import DalleEncoder, load_dalle
from tasks.pretraining.targets import DvaeToken
from tasks.pretraining.tokenizer import (
    Tokenizer,
    build_tokenizer,
    ids_of_patches,
    lanczos_resize,
    load_tokenizer,
)

WIDTH, CODES, DEPTH = 8, 24, 2


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return DalleEncoder(num_codes=CODES, width=WIDTH, depth=DEPTH).eval()


def published(encoder):
    """The state dict under the names of the published layout."""
    renamed = {"weight": "w", "bias": "b"}
    return {
        f"{name.rpartition('.')[0]}.{renamed[name.rpartition('.')[2]]}": value
        for name, value in encoder.state_dict().items()
    }


def naive_logits(w, images):
    """The encoder from the layout's tensors alone, block by block."""

    def conv(x, name):
        weight = w[f"{name}.w"]
        return F.conv2d(x, weight, w[f"{name}.b"], padding=(weight.shape[-1] - 1) // 2)

    x = conv(0.1 + 0.8 * images, "blocks.input")
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            y = x
            for index in (1, 2, 3, 4):
                y = conv(y.relu(), f"{name}.res_path.conv_{index}")
            x = (conv(x, f"{name}.id_path") if f"{name}.id_path.w" in w else x) + y / 64
        if group < 4:
            x = F.max_pool2d(x, 2)
    return conv(x.relu(), "blocks.output.conv")


def test_encoder_is_the_published_function(encoder):
    images = torch.rand(2, 3, 32, 16)
    logits = encoder.logits(images)
    assert logits.shape == (2, CODES, 4, 2)
    torch.testing.assert_close(
        logits, naive_logits(published(encoder), images), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(encoder.encode(images), logits.argmax(1))


def test_paper_scale_is_the_published_size():
    with torch.device("meta"):
        encoder = DalleEncoder()
        # 112 px in, 14 x 14 ids of 8192 out.
        assert encoder.blocks(torch.rand(1, 3, 112, 112)).shape == (1, 8192, 14, 14)
    assert encoder.blocks.output.conv.weight.shape == (8192, 2048, 1, 1)
    assert sum(p.numel() for p in encoder.parameters()) == 53_786_240


@pytest.fixture
def pickled(encoder, tmp_path, monkeypatch):
    """Files that hold whole modules of a package that is gone when they are read."""
    package = types.ModuleType("dall_e")
    modules = {name: types.ModuleType(f"dall_e.{name}") for name in ("encoder", "utils")}
    for name, module in [("dall_e", package), *((m.__name__, m) for m in modules.values())]:
        monkeypatch.setitem(sys.modules, name, module)

    def define(module, name):
        cls = type(name, (nn.Module,), {"__module__": module.__name__, "__qualname__": name})
        setattr(module, name, cls)
        return cls

    conv_class = define(modules["utils"], "Conv2d")
    block_class = define(modules["encoder"], "EncoderBlock")
    encoder_class = define(modules["encoder"], "Encoder")

    def rebuilt(module):
        """The same tree of modules, of the published classes."""
        if isinstance(module, nn.Conv2d):
            new = conv_class()
            new.w, new.b = nn.Parameter(module.weight.data), nn.Parameter(module.bias.data)
            new.n_in, new.device, new.use_float16 = 3, torch.device("cpu"), True
            return new
        children = OrderedDict((name, rebuilt(child)) for name, child in module.named_children())
        if isinstance(module, nn.Sequential):
            return nn.Sequential(children)
        if not children:
            return module
        new = (encoder_class if isinstance(module, DalleEncoder) else block_class)()
        for name, child in children.items():
            setattr(new, name, child)
        new.post_gain = 1 / 64
        return new

    def write(zipped):
        path = tmp_path / f"encoder-{zipped}.pkl"
        torch.save(rebuilt(encoder), path, _use_new_zipfile_serialization=zipped)
        return path

    paths = [write(True), write(False)]
    for name in ("dall_e", "dall_e.encoder", "dall_e.utils"):
        monkeypatch.delitem(sys.modules, name)
    return paths


def test_published_pickle_is_read_without_its_package(pickled, encoder):
    read = load_tokenizer(pickled[0])
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(read.logits(images), encoder.logits(images))
    assert "dall_e" not in sys.modules


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_pickle_in_the_old_format_says_what_to_do(pickled):
    with pytest.raises(UserError, match=r"its state_dict\(\) as .pth"):
        load_tokenizer(pickled[1])


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w}])
def test_state_dict_is_read(encoder, tmp_path, wrap):
    torch.save(wrap(published(encoder)), tmp_path / "dalle.pth")
    read = load_tokenizer(tmp_path / "dalle.pth")
    for name, value in encoder.state_dict().items():
        assert torch.equal(read.state_dict()[name], value)
    assert build_tokenizer(read.sizes).state_dict().keys() == read.state_dict().keys()


class Runs:
    """What a hostile file holds: unpickling it would write a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_file_that_wants_code_run_is_refused(tmp_path):
    torch.save(Runs(tmp_path / "marker"), tmp_path / "encoder.pkl")
    with pytest.raises(UserError, match="without running code from it"):
        load_dalle(tmp_path / "encoder.pkl")
    assert not (tmp_path / "marker").exists()


def test_other_files_are_refused(encoder, tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match="no tokenizer at"):
        load_dalle(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        load_dalle(path)
    torch.save({"layer.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"blocks.input.\* and blocks.output.conv.\* are needed"):
        load_dalle(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds a list"):
        load_dalle(path)
    broken = published(encoder)
    del broken["blocks.group_2.block_1.id_path.w"]
    torch.save(broken, path)
    with pytest.raises(UserError, match=r"group_2.block_1.id_path"):
        load_dalle(path)


@pytest.mark.parametrize(("before", "after"), [((224, 224), (112, 112)), ((30, 17), (11, 40))])
def test_lanczos_is_pillows(before, after):
    image = torch.rand(1, 1, *before)
    pillow = Image.fromarray(image[0, 0].numpy()).resize(after[::-1], Image.Resampling.LANCZOS)
    torch.testing.assert_close(
        lanczos_resize(image, after)[0, 0], torch.from_numpy(np.asarray(pillow)), atol=2e-5, rtol=0
    )


def test_every_patch_size_gets_one_id_per_patch(encoder):
    images = torch.rand(2, 3, 64, 32)
    ids = ids_of_patches(encoder, images, (4, 2))
    expected = encoder.encode(lanczos_resize(images, (32, 16)).clamp(0, 1))
    assert torch.equal(ids, expected)
    own = Tokenizer(stride=4, num_codes=8, width=16)
    assert torch.equal(ids_of_patches(own, images, (16, 8)), own.encode(images))


@pytest.mark.parametrize("decodes", [False, True])
def test_token_target_of_any_patch_size(encoder, decodes):
    tokenizer = Tokenizer(stride=4, num_codes=8, width=16) if decodes else encoder
    target = DvaeToken(16, tokenizer)
    images = torch.rand(2, 3, 64, 64)
    masked = torch.tensor([[0, 5, 15], [3, 2, 1]])
    truth = target(normalise_batch(images), None, masked)
    ids = ids_of_patches(tokenizer, images, (4, 4)).flatten(1)
    assert torch.equal(truth, torch.stack([ids[0, [0, 5, 15]], ids[1, [3, 2, 1]]]))
    shown = target.to_pixels(
        torch.randn(2, 3, target.dim), normalise_batch(images), patchify(images, 16), masked
    )
    assert shown.shape == (2, 3, 16 * 16 * 3)
    assert bool(shown.any()) == decodes
