"""What runs cost: formulas against torch's counter, measurements before formulas."""

import math

import made_up
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbones import create_backbone
from mae_bench.cost import STATED, Cost, Estimates, folder_bytes
from mae_bench.flops import model_of, training_flops, training_images
from mae_bench.recipes import load_recipe
from mae_bench.records import Record, Run
from tasks.data.extent import Extent

DEFAULTS = {
    "pretraining": "pretraining/mini_mae",
    "supervised": "pretraining/mini_supervised",
    "tokenizer": "pretraining/mini_tokenizer",
    "classification": "classification/mini_finetune",
    "detection": "detection/mini",
    "segmentation": "segmentation/mini",
}


def run(task: str, overrides: dict | None = None, **fields) -> Run:
    recipe = fields.pop("recipe", DEFAULTS[task])
    values = load_recipe(recipe, overrides)
    return made_up.run(task, recipe=recipe, recipe_values=values, **fields)


def counted(forward) -> float:
    """Multiply-adds of a forward pass by torch's own count, which knows attention as products."""
    mathematics = sdpa_kernel(SDPBackend.MATH)
    with mathematics, FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() / 2


def parameters(*modules) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("ratio", [0.75, 0.5])
@pytest.mark.parametrize("everywhere", [False, True])
def test_pretraining_computes_what_torch_counts(ratio: float, everywhere: bool) -> None:
    from tasks.pretraining.mae import MaskedAutoencoder
    from tasks.pretraining.targets import Pixel

    overrides = {"model.mask_ratio": ratio, "model.encoder_mask_tokens": everywhere}
    this = run("pretraining", {**overrides, "model.decoder_depth": 3})
    encoder = create_backbone("vit_mini_patch8", img_size=48)
    model = MaskedAutoencoder(
        encoder,
        Pixel(8, 48),
        mask_ratio=ratio,
        decoder_width=64,
        decoder_depth=3,
        encoder_mask_tokens=everywhere,
    )
    images = torch.rand(2, 3, 48, 48)
    found = model_of(this)
    assert found.whole.trained == pytest.approx(counted(lambda: model(images)) / 2, rel=0.01)
    assert found.whole.parameters == pytest.approx(parameters(model), rel=0.03)
    assert found.encoder.parameters == pytest.approx(parameters(encoder), rel=0.03)


def test_classification_computes_what_torch_counts() -> None:
    encoder = create_backbone("vit_mini_patch8", img_size=64)
    images = torch.rand(2, 3, 64, 64)
    macs = counted(lambda: encoder.forward_features(images)) / 2
    tuned = model_of(run("classification"))
    probed = model_of(run("classification", recipe="classification/mini_linear_probe"))
    assert tuned.whole.trained == pytest.approx(macs, rel=0.01) and not tuned.whole.frozen
    assert probed.encoder.frozen == pytest.approx(macs, rel=0.01)
    assert probed.whole.trained < 0.01 * macs
    assert tuned.whole.training_flops == pytest.approx(3 * 2 * macs, rel=0.01)
    assert probed.whole.training_flops == pytest.approx(2 * macs, rel=0.01)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_tokenizer_computes_what_torch_counts(depth: int) -> None:
    from tasks.pretraining.tokenizer import Tokenizer

    this = run("tokenizer", {"model.depth": depth})
    model = Tokenizer(stride=8, num_codes=128, width=64, depth=depth)
    images = torch.rand(2, 3, 48, 48)
    found = counted(lambda: model.decode(model.logits(images).softmax(1))) / 2
    assert model_of(this).whole.trained == pytest.approx(found, rel=0.01)
    assert model_of(this).whole.parameters == pytest.approx(parameters(model), rel=0.03)


@pytest.mark.detectron2
def test_detection_computes_what_torch_counts() -> None:
    """Without the region heads, whose load depends on what is found in the images."""
    from detectron2.config import instantiate

    from tasks.detection import lazy_config

    this = run("detection", {"model.rpn_convs": 2, "model.roi_samples": 0})
    config = lazy_config(this.recipe_values, backbone="vit_mini_patch8", dataset="mini-coco")
    config["model"].roi_heads.num_classes = config["model"].roi_heads.box_predictor.num_classes = 5
    config["model"].roi_heads.mask_head.num_classes = 5
    model = instantiate(config["model"])
    images = torch.rand(1, 3, 96, 96)

    def forward():
        features = model.backbone(images)
        names = model.proposal_generator.in_features
        model.proposal_generator.rpn_head([features[name] for name in names])

    assert model_of(this).whole.trained == pytest.approx(counted(forward), rel=0.02)


def test_region_heads_are_counted_as_often_as_they_run() -> None:
    def macs(samples: int) -> float:
        return model_of(run("detection", {"model.roi_samples": samples})).whole.trained

    # By hand: box head 7 * 7 * 64 -> 256 -> 5 * 100; a quarter of the samples through three 3 x 3
    # convolutions of 64 channels on 8 x 8, a transposed one to 16 x 16, and 100 masks.
    box = 49 * 64 * 256 + 256 * 500
    mask = 64 * (3 * 9 * 64 * 64 + 4 * 64 * 64) + 256 * 64 * 100
    assert macs(32) - macs(0) == pytest.approx(32 * box + 8 * mask)


@pytest.mark.mmseg
def test_segmentation_computes_what_torch_counts(tmp_path_factory) -> None:
    from backbones.pyramid import TapPyramid

    this = run("segmentation")
    encoder, pyramid = create_backbone("vit_mini_patch8", img_size=64), TapPyramid(96)
    from mmengine.registry import DefaultScope
    from mmseg.models import UPerHead

    # A Runner that another test built leaves its own scope behind.
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = UPerHead(
            in_channels=[96] * 4,
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2, 3, 6),
            channels=32,
            num_classes=100,
            norm_cfg=dict(type="BN"),
            align_corners=False,
        ).eval()
    auxiliary = torch.nn.Conv2d(96, 32, 3, padding=1)
    images = torch.rand(1, 3, 64, 64)

    def forward():
        maps = pyramid(encoder.forward_maps(images, [0, 1, 2, 3]))
        head(maps)
        auxiliary(maps[2])

    assert model_of(this).whole.trained == pytest.approx(counted(forward), rel=0.02)
    frozen = model_of(run("segmentation", recipe="segmentation/mini_frozen"))
    assert frozen.encoder.frozen == model_of(this).encoder.trained


@pytest.mark.parametrize(
    ("backbone", "gmacs", "millions"),
    [
        ("vit_base_patch16", 17.58, 111.91),
        ("vit_large_patch16", 61.60, 329.54),
        ("vit_huge_patch14", 167.40, 657.07),
    ],
)
def test_published_sizes(backbone: str, gmacs: float, millions: float) -> None:
    """Encoder at 224 px and encoder with decoder: open-mmlab/mmpretrain configs/mae/README.md."""
    overrides = {"data.image_size": 224, "model.decoder_width": 512, "model.decoder_depth": 8}
    mae = model_of(run("pretraining", overrides, backbone=backbone))
    tuned = model_of(run("classification", {"data.image_size": 224}, backbone=backbone))
    assert tuned.encoder.trained / 1e9 == pytest.approx(gmacs, rel=0.005)
    assert mae.whole.parameters / 1e6 == pytest.approx(millions, rel=0.005)


def test_the_stated_speed_is_what_its_source_says() -> None:
    """42 h on 64 V100 for 800 epochs of ViT-L: facebookresearch/mae PRETRAIN.md."""
    values = load_recipe("pretraining/mae", {"solver.epochs": 800})
    large = made_up.run(
        "pretraining",
        recipe="pretraining/mae",
        recipe_values=values,
        backbone="vit_large_patch16",
        dataset="imagenet",
    )
    assert training_images(large) == 800 * 1_281_167
    found = Estimates().cost(large, "paper")
    assert found.gpu_hours == pytest.approx(42 * 64, rel=0.02)
    assert found.device == "V100" and found.core_hours is None and "PRETRAIN.md" in found.source


def test_what_no_formula_knows_is_unknown() -> None:
    other = run("detection", backbone="timm:resnet50")
    assert training_flops(other) is None
    said = "no formula knows detection with timm:resnet50, the first run that is done tells"
    assert Estimates().cost(other, "mini") == Cost(source=said)
    values = load_recipe("pretraining/mae")
    epochs = made_up.run("pretraining", recipe="x", recipe_values=values, dataset="mine")
    assert training_flops(epochs) is None
    assert "how many images mine has" in Estimates().cost(epochs, "mini").source


def test_own_data_has_a_price() -> None:
    """By its number of images and, where the recipe leaves that to it, their size."""
    values = load_recipe("detection/own_data", {"solver.epochs": 3}, backbone="vit_tiny_patch16")
    given = dict(recipe="detection/own_data", backbone="vit_tiny_patch16", dataset="coco-format:x")
    own = made_up.run("detection", recipe_values=values, **given)
    set_size = {**values, "data": {**values["data"], "image_size": 160}}
    same = made_up.run("detection", recipe_values=set_size, **given)
    small, large = Extent(200, 160), Extent(400, 160)
    found = Estimates(extent=lambda name: small).cost(own, "mini")
    assert found.flops == 3 * 200 * model_of(same).whole.training_flops
    assert found.core_hours == pytest.approx(found.flops / STATED["mini"].flops_per_second / 3600)
    measured = Estimates(
        [done(own, 100.0)], extent=lambda name: small if name[-1] == "x" else large
    )
    elsewhere = own.model_copy(update={"dataset": "coco-format:y"})
    assert measured.cost(own, "mini").source.startswith("measured")
    assert measured.cost(elsewhere, "mini").seconds == pytest.approx(200.0)


def done(which: Run, seconds: float, gpu: str | None = None, world_size: int = 1) -> Record:
    hardware = {"cpu": "two cores", **({"gpu": gpu} if gpu else {})}
    made = made_up.provenance(seconds=seconds, hardware=hardware, world_size=world_size)
    return made_up.record(which, {"box_ap": 1.0}, provenance=made)


def test_measured_runs_come_before_formulas() -> None:
    first, other_seed = run("detection"), run("detection", seed=1)
    records = [done(first, 100.0), done(run("detection", init="supervised"), 200.0)]
    found = Estimates(records).cost(other_seed, "mini")
    assert found.seconds == 150 and found.core_hours == pytest.approx(150 / 3600)
    assert found.source == "measured in 2 runs on two cores"
    assert found.flops == training_flops(first)


def test_another_length_is_scaled_from_what_was_measured() -> None:
    short = run("detection")
    longer = run("detection", {"solver.iterations": 5000})
    found = Estimates([done(short, 100.0)]).cost(longer, "mini")
    assert found.seconds == pytest.approx(1000.0)
    assert found.source == "scaled from 1 run of this task and backbone on two cores"
    elsewhere = Estimates([done(short, 100.0)]).cost(run("segmentation"), "mini")
    assert elsewhere.source == STATED["mini"].source


def test_a_smoke_run_tells_nothing_about_a_long_one() -> None:
    smoke = done(run("detection", {"solver.iterations": 2}), 30.0)
    assert Estimates([smoke]).cost(run("detection"), "mini").source == STATED["mini"].source


def test_many_runs_are_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Run] = []

    def counting(which: Run, extent: Extent | None) -> float | None:
        counted.append(which)
        return training_flops(which, extent)

    monkeypatch.setattr("mae_bench.cost.training_flops", counting)
    estimates = Estimates(done(run("detection", seed=seed), 100.0) for seed in range(50))
    longer = [run("detection", {"solver.iterations": 5000}, seed=seed) for seed in range(50)]
    sources = {estimates.cost(one, "mini").source for one in longer}
    assert sources == {"scaled from 50 runs of this task and backbone on two cores"}
    assert len(counted) == 100
    estimates.learn(done(longer[0], 3000.0))
    assert estimates.of(longer[1]) == 3000
    estimates.learn(done(longer[2], 1000.0))
    assert estimates.of(longer[1]) == estimates.cost(longer[1], "mini").seconds == 2000


def test_hours_are_of_all_devices() -> None:
    found = Estimates([done(run("detection"), 3600.0, "H100", 8)]).cost(run("detection"), "paper")
    assert (found.gpu_hours, found.core_hours, found.seconds) == (8.0, None, 3600.0)


def test_failed_runs_teach_nothing() -> None:
    failed = done(run("detection"), 1.0).model_copy(update={"status": "failed"})
    assert "measured" not in Estimates([failed]).cost(run("detection"), "mini").source


def test_measured_disk(tmp_path) -> None:
    record = done(run("detection"), 1.0)
    folder = tmp_path / record.id
    (folder / "below").mkdir(parents=True)
    (folder / "a").write_bytes(b"x" * 1000)
    (folder / "below" / "b").write_bytes(b"x" * 10)
    (folder / "link").symlink_to(folder)
    assert 1010 <= folder_bytes(folder) < 2000
    found = Estimates([record], tmp_path).cost(run("detection", seed=3), "mini")
    assert found.disk_bytes == folder_bytes(folder)
    assert folder_bytes(tmp_path / "none") == 0


def test_disk_by_formula() -> None:
    found = Estimates().cost(run("pretraining"), "mini")
    model = model_of(run("pretraining"))
    assert found.disk_bytes == round(4 * (model.encoder.parameters + model.whole.parameters))
    states = 3 * 3 * 4 * model.whole.parameters
    assert math.isclose(found.peak_disk_bytes - found.disk_bytes, states, abs_tol=2)
    assert Estimates().cost(run("classification"), "mini").disk_bytes == 0
