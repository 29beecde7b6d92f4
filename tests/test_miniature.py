"""The miniature world: formats, labels that say what can be seen, determinism."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tasks.data import ade20k_split, classification_split, coco_split, prepare
from tasks.data.miniature import contact_sheet, truth, write
from tasks.data.miniature.scenes import CLUTTER, draw_scene, draw_subject
from tasks.data.miniature.surfaces import SURFACE_PAINTERS
from tasks.data.miniature.things import FIGURES
from tasks.data.miniature.writers import image_rng, long_tail
from tasks.data.specs import SPECS, SURFACES, THINGS, WORLD_VERSION, InatSpec

SMALL = {
    "mini-imagenet": replace(SPECS["mini-imagenet"], train_per_class=2, val_per_class=1),
    "mini-coco": replace(SPECS["mini-coco"], num_train=30, num_val=12, crowd_share=0.4),
    "mini-ade20k": replace(SPECS["mini-ade20k"], num_train=10, num_val=5),
    "mini-inat": replace(SPECS["mini-inat"], head_images=6, tail_images=2, val_per_class=2),
    "mini-places": replace(SPECS["mini-places"], train_per_class=3, val_per_class=2),
}
IMAGES = {".jpg", ".JPEG"}
GOLDEN = {
    "version": 3,
    "mini-imagenet": [
        [108, 79, 86, 125, 92, 101, 46, 56, 95, 32, 77, 106],
        [96, 139, 173, 88, 156, 183, 57, 117, 36, 58, 120, 45],
    ],
    "mini-coco": [
        [103, 110, 147, 94, 131, 171, 32, 86, 115, 29, 86, 117],
        [93, 129, 179, 100, 134, 186, 48, 85, 125, 56, 79, 117],
    ],
    "mini-ade20k": [
        [151, 101, 92, 163, 99, 87, 132, 104, 91, 156, 126, 101],
        [99, 126, 151, 111, 149, 187, 148, 134, 88, 177, 162, 116],
    ],
    "mini-inat": [
        [99, 76, 60, 98, 76, 60, 72, 76, 39, 67, 91, 36],
        [115, 175, 213, 134, 187, 219, 68, 127, 55, 52, 106, 68],
    ],
    "mini-places": [
        [85, 113, 140, 86, 104, 150, 146, 132, 87, 146, 123, 98],
        [128, 83, 88, 145, 105, 90, 128, 94, 54, 109, 86, 47],
    ],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, spec in SMALL.items():
        prepare(name, folder, spec)
    return folder


def images_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in IMAGES]


@pytest.fixture(scope="module", params=["train", "val"])
def coco(request, root) -> tuple[COCO, Path]:
    split = coco_split("mini-coco", root, request.param)
    return COCO(split.json), split.images


# --- what every set owes ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_sizes_and_formats(root, name):
    paths = images_below(root / name)
    assert paths
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "JPEG" and image.mode == "RGB"
            assert image.size == (SPECS[name].size_px,) * 2


@pytest.mark.parametrize("name", SPECS)
def test_two_generations_are_byte_identical(root, tmp_path, name):
    write(SMALL[name], tmp_path)
    again = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    first = {path: (root / name / path).read_bytes() for path in again}
    assert again == first


@pytest.mark.parametrize("name", SPECS)
def test_no_image_appears_twice(root, name):
    """Holds across the splits and within them."""
    contents = Counter(path.read_bytes() for path in images_below(root / name))
    assert max(contents.values()) == 1


def test_no_image_is_shared_by_two_sets(root):
    contents = [path.read_bytes() for path in images_below(root)]
    assert len(set(contents)) == len(contents)


def test_an_image_can_be_drawn_alone():
    spec = SPECS["mini-coco"]
    alone = draw_scene(image_rng(spec, "train", 3), spec)
    for index in range(5):
        scene = draw_scene(image_rng(spec, "train", index), spec)
        assert (scene.image == alone.image).all() == (index == 3)


def test_the_seed_changes_every_image():
    spec = SPECS["mini-coco"]
    other = replace(spec, seed=spec.seed + 1)
    one, two = (draw_scene(image_rng(s, "train", 0), s).image for s in (spec, other))
    assert (one != two).any()


def thumbnails(root: Path, name: str) -> list[list[int]]:
    """Mean colour of the quarters of two images."""
    paths = sorted(images_below(root / name))
    images = [np.asarray(Image.open(path)) for path in (paths[0], paths[-1])]
    return [cv2.resize(i, (2, 2), interpolation=cv2.INTER_AREA).ravel().tolist() for i in images]


@pytest.mark.parametrize("name", SPECS)
def test_the_drawing_is_that_of_the_world_version(root, name):
    """Whoever means to change the drawing bumps WORLD_VERSION and renews GOLDEN."""
    assert GOLDEN["version"] == WORLD_VERSION
    np.testing.assert_allclose(thumbnails(root, name), GOLDEN[name], atol=1)


@pytest.mark.parametrize("name", SPECS)
def test_pictures_use_the_range_of_brightness(root, name):
    """Neither blown out nor flat: what a wrong gain or a lost surface would do."""
    for path in images_below(root / name)[:20]:
        image = np.asarray(Image.open(path), np.float32)
        assert 40 < image.mean() < 220
        assert image.std() > 15


# --- COCO ------------------------------------------------------------------------------------


def test_coco_loads_and_ids_have_gaps(coco):
    api, folder = coco
    assert api.getCatIds() == list(SMALL["mini-coco"].category_ids)
    assert max(api.getCatIds()) > len(api.getCatIds())
    assert [c["name"] for c in api.loadCats(api.getCatIds())] == list(THINGS)
    for image in api.loadImgs(api.getImgIds()):
        assert Image.open(folder / image["file_name"]).size == (image["width"], image["height"])
    assert len(set(api.getAnnIds())) == len(api.dataset["annotations"]) > 0


def test_coco_geometry_is_that_of_the_mask(coco):
    api, _ = coco
    for annotation in api.loadAnns(api.getAnnIds()):
        mask = api.annToMask(annotation)
        x, y, width, height = annotation["bbox"]
        assert width >= 1 and height >= 1
        assert min(x, y) >= 0 and max(x + width, y + height) <= 96
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(seen, (x, y, x + width, y + height), atol=1)
        assert annotation["area"] == pytest.approx(mask.sum(), rel=0.08)
        assert annotation["area"] >= SMALL["mini-coco"].min_visible_px


def test_coco_has_polygons_and_a_few_crowds(coco):
    api, _ = coco
    annotations = api.loadAnns(api.getAnnIds())
    crowds = [a for a in annotations if a["iscrowd"]]
    assert 0 < len(crowds) < len(annotations) / 2
    for annotation in annotations:
        if annotation["iscrowd"]:
            assert sum(annotation["segmentation"]["counts"]) == 96 * 96
        else:
            assert all(len(p) >= 6 and len(p) % 2 == 0 for p in annotation["segmentation"])


def rasterise(polygons: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))).astype(bool)


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    return (one & two).sum() / (one | two).sum()


def test_polygons_rasterise_to_the_visible_mask():
    spec = SPECS["mini-coco"]
    overlaps = []
    for index in range(40):
        scene = draw_scene(image_rng(spec, "val", index), spec)
        for thing in range(len(scene.things)):
            mask = scene.owner == thing
            if thing not in scene.crowds and mask.sum() >= spec.min_visible_px:
                overlaps.append(overlap(rasterise(truth.polygons(mask), mask.shape), mask))
    assert min(overlaps) > 0.9
    assert np.mean(overlaps) > 0.96


def test_polygons_leave_holes_open():
    rows, columns = np.mgrid[:48, :48] - 24
    radius = np.hypot(rows, columns)
    ring = (radius < 20) & (radius > 9)
    assert overlap(rasterise(truth.polygons(ring), ring.shape), ring) > 0.95


@pytest.mark.parametrize("corner", [0, 1])
def test_run_lengths_are_pycocotools_own(corner):
    mask = np.random.default_rng(0).uniform(size=(13, 17)) < 0.4
    mask[0, 0] = corner
    ours = coco_mask.frPyObjects(truth.run_lengths(mask), *mask.shape)
    assert ours["counts"] == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


# --- ADE20K ----------------------------------------------------------------------------------


def test_ade_maps_are_single_channel_with_all_labels_in_range(root):
    seen = set()
    for split, count in (("train", 10), ("val", 5)):
        data = ade20k_split("mini-ade20k", root, split)
        stems = sorted(path.stem for path in data.images.iterdir())
        assert len(stems) == count
        assert stems == sorted(path.stem for path in data.annotations.iterdir())
        for path in data.annotations.iterdir():
            with Image.open(path) as image:
                assert image.mode == "L"
                seen |= set(np.unique(np.asarray(image)).tolist())
    assert seen <= set(range(len(data.classes) + 1))
    assert 0 in seen and {1, 2} <= seen
    assert data.classes == [*SURFACES, *THINGS]


def test_zero_is_clutter_and_nothing_else():
    spec = SPECS["mini-ade20k"]
    clutter = 0
    for index in range(10):
        scene = draw_scene(image_rng(spec, "train", index), spec)
        labels = truth.class_map(scene)
        assert ((labels == 0) == (scene.owner == CLUTTER)).all()
        for thing, name in enumerate(scene.things):
            expected = 1 + len(SURFACES) + THINGS.index(name)
            assert (labels[scene.owner == thing] == expected).all()
        clutter += (labels == 0).sum()
    assert 0 < clutter < 0.05 * 10 * spec.size_px**2


def test_every_class_is_common_enough_to_learn():
    spec = SPECS["mini-ade20k"]
    counts = Counter()
    for index in range(spec.num_train):
        labels = truth.class_map(draw_scene(image_rng(spec, "train", index), spec))
        counts.update(np.unique(labels).tolist())
    assert min(counts[label] for label in range(1, 13)) >= 10


def test_labels_agree_with_the_picture():
    """The sky is bluer than the bricks: labels and image are of the same scene, same way up."""
    spec = SPECS["mini-ade20k"]
    blue = {"sky": [], "brick": []}
    for index in range(12):
        scene = draw_scene(image_rng(spec, "val", index), spec)
        labels = truth.class_map(scene)
        for name, values in blue.items():
            pixels = scene.image[labels == 1 + SURFACES.index(name)].astype(float)
            if len(pixels):
                values.append((pixels[:, 2] - pixels[:, 0]).mean())
    assert min(blue["sky"]) > 0 > max(blue["brick"])


# --- iNaturalist -----------------------------------------------------------------------------


def test_inat_json_and_tree(root):
    top = root / "mini-inat" / "inat2018"
    files = []
    for split in ("train", "val"):
        content = json.loads((top / f"{split}2018.json").read_text())
        families = {c["id"]: c["supercategory"] for c in content["categories"]}
        owner = {a["image_id"]: a["category_id"] for a in content["annotations"]}
        assert len(owner) == len(content["images"])
        for image in content["images"]:
            folder, family, category, _ = image["file_name"].split("/")
            assert folder == "train_val2018"
            assert owner[image["id"]] == int(category) and families[int(category)] == family
            files.append(image["file_name"])
    assert len(set(files)) == len(files) == len(images_below(top))


def test_long_tail():
    spec = InatSpec()
    counts = long_tail(spec)
    assert counts[0] == spec.head_images and counts[-1] == spec.tail_images
    assert counts == sorted(counts, reverse=True)
    assert 180 <= sum(counts) <= 230
    assert len({species.name for species in spec.species}) == len(spec.species) == 12
    assert len({species.look for species in spec.species}) == 12


def test_inat_counts_follow_the_tail(root):
    spec = SMALL["mini-inat"]
    train = Counter(classification_split("mini-inat", root, "train").labels)
    assert [train[label] for label in range(12)] == long_tail(spec)
    assert set(Counter(classification_split("mini-inat", root, "val").labels).values()) == {2}


# --- Places and ImageNet ---------------------------------------------------------------------


def test_places_lists(root):
    top = root / "mini-places" / "places365"
    names = (top / "categories_places365.txt").read_text().splitlines()
    assert names[3] == "/f/field/wild 3"
    assert all(line.startswith(f"/{line.split('/')[2][0]}/") for line in names)
    train = (top / "places365_train_standard.txt").read_text().splitlines()
    assert train[0] == "/b/beach/00000001.jpg 0"
    val = (top / "places365_val.txt").read_text().splitlines()
    assert val[0] == "Places365_val_00000001.jpg 0"
    assert len(train) == 24 and len(val) == 16


def test_imagenet_is_an_image_folder(root):
    from torchvision.datasets import ImageFolder

    for split, per_class in (("train", 2), ("val", 1)):
        ours = classification_split("mini-imagenet", root, split)
        theirs = ImageFolder(str(root / "mini-imagenet" / "imagenet" / split))
        assert theirs.classes == ours.classes
        assert [Path(path) for path, _ in theirs.samples] == list(ours.paths)
        assert theirs.targets == ours.labels
        assert set(Counter(ours.labels).values()) == {per_class}


# --- the drawing -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_figures_fit_their_circle_and_fill_some_of_it(name):
    rng = np.random.default_rng(1)
    v, u = np.mgrid[-1.4:1.4:141j, -1.4:1.4:141j].astype(np.float32)
    for _ in range(20):
        figure = FIGURES[name](rng, {})
        inside = figure.outline(u, v) < 0
        assert not inside[np.hypot(u, v) > 1.12].any()
        assert 0.1 < inside.sum() / (np.hypot(u, v) < 1).sum() < 1
        colours = figure.paint(u, v)
        assert colours.shape == (141, 141, 3) and np.isfinite(colours).all()


@pytest.mark.parametrize("name", FIGURES)
def test_two_exemplars_differ(name):
    rng = np.random.default_rng(2)
    spec = SPECS["mini-imagenet"]
    one, two = (draw_subject(rng, spec, name, {}).image for _ in range(2))
    assert np.abs(one.astype(int) - two).mean() > 5


@pytest.mark.parametrize("name", SURFACE_PAINTERS)
@pytest.mark.parametrize("shape", [(40, 128), (90, 288)])
def test_surfaces_are_textured_and_in_range(name, shape):
    image = SURFACE_PAINTERS[name](np.random.default_rng(3), *shape)
    assert image.shape == (*shape, 3) and np.isfinite(image).all()
    assert image.min() > -0.1 and image.max() < 1.4
    assert image.std(axis=(0, 1)).max() > 0.02


def test_contact_sheet(tmp_path):
    contact_sheet(tmp_path / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 1200 and sheet.std() > 30
