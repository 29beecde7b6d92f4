"""`verify` and the rules behind it: clean trees have no fault, and each planted one is caught."""

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import HEIGHT, TREES, WIDTH, make, picture
from PIL import Image

from mae_bench.cli import main
from mae_bench.errors import UserError
from tasks.data import DATASETS, Counts, Dataset, get_dataset
from tasks.data.verify import RULES, Report, check, verify
from tasks.data.verify.coco import COCO_IDS, runs_of
from tasks.data.verify.scan import scan_image

COCO, ADE20K = "coco-format:{}/own", "ade20k-format:{}/own"


def examine(key: str, root: Path, **options) -> Report:
    return verify(key.format(root), root, subset=True, **options)


def rules_of(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings}


# --- clean trees -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", TREES)
def test_a_clean_tree_has_no_fault(key, tmp_path):
    make(key, tmp_path)
    report = examine(key, tmp_path)
    assert report.faults == [] and rules_of(report) <= {"id-gaps"}
    assert report.fingerprint and set(report.splits) == {"train", "val"}
    task = {"labelled": "classification", "coco": "detection", "ade20k": "segmentation"}
    check(key.format(tmp_path), tmp_path, task[get_dataset(key).kind], subset=True)


def test_facts_are_those_of_the_tree(tmp_path):
    for key in ("places365", "coco", "ade20k"):
        make(key, tmp_path)
    places, coco, ade = (examine(key, tmp_path).splits for key in ("places365", "coco", "ade20k"))
    assert places["train"]["histogram"] == {"airfield": 2, "field/road": 2, "field/wild": 2}
    assert (places["val"]["images"], places["val"]["most_per_class"]) == (3, 1)
    assert coco["val"]["histogram"] == {"thing2": 4, "thing3": 2, "thing7": 2}
    assert (coco["val"]["crowds"], coco["val"]["polygons"], coco["val"]["run_lengths"]) == (2, 6, 2)
    column = 3 * WIDTH * HEIGHT // 4
    assert ade["train"]["stored_values"] == dict.fromkeys(range(4), column)
    assert ade["train"]["histogram"] == dict.fromkeys(("wall", "sky", "tree"), column)
    assert ade["train"]["unlabelled_pixels"] == column


# --- one planted fault for each rule ---------------------------------------------------------

Plant = Callable[[Path], object]


def edit(file: str, change: Callable[[dict], object]) -> Plant:
    """Change a json."""

    def plant(home: Path) -> None:
        content = json.loads((home / file).read_text())
        change(content)
        (home / file).write_text(json.dumps(content))

    return plant


def replace(file: str, old: str, new: str) -> Plant:
    """Change a list."""

    def plant(home: Path) -> None:
        content = (home / file).read_text()
        assert old in content
        (home / file).write_text(content.replace(old, new, 1))

    return plant


def train_json(change: Callable[[dict], object]) -> Plant:
    return edit("train/_annotations.coco.json", change)


def annotation(**values) -> Plant:
    """Change the first object of a user's COCO set; None takes a key away."""

    def change(content: dict) -> None:
        item = content["annotations"][0]
        item.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del item[key]

    return train_json(change)


def crowd(**values) -> Plant:
    return train_json(lambda content: content["annotations"][3].update(values))


def label_map(change: Callable[[np.ndarray], np.ndarray], mode: str | None = None) -> Plant:
    """Change one training map of the classes 0 to 3."""

    def plant(home: Path) -> None:
        path = home / "ann_dir/train/1.png"
        Image.fromarray(change(np.asarray(Image.open(path))), mode).save(path)

    return plant


def palette(home: Path) -> None:
    path = home / "ann_dir/train/1.png"
    image = Image.fromarray(np.asarray(Image.open(path)), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path)


def cut_off(pattern: str) -> Plant:
    def plant(home: Path) -> None:
        path = next(iter(sorted(home.glob(pattern))))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return plant


def remove(pattern: str) -> Plant:
    def plant(home: Path) -> None:
        for path in sorted(home.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return plant


def instead(name: str, content: bytes) -> Plant:
    """A file of this content in place of another one, or of a folder."""

    def plant(home: Path) -> None:
        remove(name)(home)
        (home / name).write_bytes(content)

    return plant


def shifted(home: Path) -> None:
    """As detectron2's script leaves them: 0 becomes 255, the others one less."""
    for path in home.glob("annotations/*/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) - np.uint8(1)).save(path)


def flatten(home: Path) -> None:
    for path in sorted(home.glob("val/*/*")):
        path.rename(home / "val" / path.name)
    for folder in home.glob("val/*/"):
        folder.rmdir()


def without_road(home: Path) -> None:
    for path in home.glob("ann_dir/train/*.png"):
        Image.fromarray(np.minimum(np.asarray(Image.open(path)), 2)).save(path)


def double(content: dict) -> None:
    content["annotations"].append(dict(content["annotations"][0]))


def deep(home: Path) -> None:
    pixels = np.full((HEIGHT, WIDTH), 4000, np.uint16)
    Image.fromarray(pixels).save(home / "train/000000000100.jpg", format="PNG")


RLE = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
SQUARE = [1, 1, 5, 1, 5, 5]
PLACES = "places365_train_standard.txt"
# Rule -> trees with one fault of it: (key of TREES, what to do to it, part of what is said).
PLANTED: dict[str, list[tuple[str, Plant, str]]] = {
    "layout": [
        ("imagenet", remove("val"), "the val split of imagenet is missing"),
        ("inat2019", remove("val2019.json"), "val2019.json does not exist"),
        ("inat2017", edit("train2017.json", lambda c: c.pop("images")), "lacks one of annotations"),
        ("places205", remove("data"), "image folder is missing"),
        ("imagenet", instead("val", b"a file"), "val: Not a directory"),
        ("ade20k", instead("images/training", b"a file"), "Not a directory"),
        ("places365", instead("places365_val.txt", b"\xe9.jpg 0"), "no text in UTF-8"),
        ("inat2018", instead("val2018.json", b"[" * 10**5), "is not JSON (maximum recursion"),
        ("inat2018", replace("val2018.json", "val0.jpg", "\\ud800.jpg"), "which no name can hold"),
        ("places365-small", remove("val_256"), "image folder of the val split is missing"),
        (COCO, train_json(lambda c: c["categories"].clear()), "has no categories"),
        (
            COCO,
            train_json(lambda c: c["annotations"][0].pop("image_id")),
            "image_id of entry 0 of annotations is None",
        ),
        ("ade20k", remove("objectInfo150.txt"), "the class list is missing"),
        (ADE20K, remove("ann_dir/val"), "the map folder of the val split is missing"),
        (ADE20K, remove("img_dir/val/*.jpg"), "holds no file"),
    ],
    "class-lists": [
        ("imagenet", lambda home: (home / "val/n01").rename(home / "val/n00"), "no known class"),
        ("inat2018", edit("val2018.json", lambda c: c["categories"][0].update(name="X")), "X"),
        ("imagefolder:{}/own", lambda home: picture(home / "val/new/1.jpg", 1), "without training"),
        (COCO, train_json(lambda c: c["categories"][0].update(name="X")), "2 X"),
    ],
    "empty-split": [
        ("places365", lambda home: (home / "places365_val.txt").write_text(""), "val holds no"),
    ],
    "shared-file": [
        ("inat2018", replace("val2018.json", "val0.jpg", "train0.jpg"), "in train and in val"),
    ],
    "missing-image": [
        ("inat2017", remove("train_val_images/Insecta/Salix/val0.jpg"), "not there"),
        ("places365", remove("val_large/*1.jpg"), "not there"),
        ("places205", remove("data/**/wild/train1.jpg"), "not there"),
        ("coco", remove("train2017/*101.jpg"), "not there"),
    ],
    "unreadable-image": [
        ("imagenet", cut_off("val/n02/*"), "Truncated"),
        ("places365-easyformat", cut_off("train/airfield/*"), "Truncated"),
        (
            COCO,
            lambda home: (home / "train/000000000100.jpg").write_text("no image"),
            "is no image, or of",
        ),
        (ADE20K, cut_off("ann_dir/val/*"), "truncated"),
    ],
    "overlap": [
        (
            "imagenet",
            lambda h: shutil.copy(h / "val/n01/n01_3.JPEG", h / "train/n03/x.JPEG"),
            "n01",
        ),
        (
            ADE20K,
            lambda h: shutil.copy(h / "img_dir/val/5.jpg", h / "img_dir/train/2.jpg"),
            "5.jpg",
        ),
        (
            COCO,
            lambda h: shutil.copy(h / "valid/000000000200.jpg", h / "train/000000000100.jpg"),
            "2",
        ),
    ],
    "list-line": [
        ("places205", replace("trainvalsplit_places205/val_places205.csv", " 0", ""), "line 1")
    ],
    "label-range": [
        ("places365", replace(PLACES, " 2", " 3"), "label 3 of f/field/wild/00000000.jpg is not"),
        ("places365", replace("categories_places365.txt", " 2", " 3"), "are not 0, 1, 2"),
        (
            "inat2018",
            replace("train2018.json", '"category_id": 2', '"category_id": 9'),
            "category 9",
        ),
    ],
    "outside-root": [
        ("places365", replace(PLACES, "/a/airfield", "/../../x"), "names '../../x/"),
        (
            "places205",
            replace("trainvalsplit_places205/val_places205.csv", "a/", "/etc/"),
            "outside",
        ),
        ("inat2018", replace("train2018.json", "train_val2018/", "../x/"), "outside of"),
        (
            COCO,
            train_json(lambda c: c["images"][1].update(file_name="../valid/x.jpg")),
            "outside of",
        ),
    ],
    "empty-class": [
        ("imagenet", remove("train/n02/*"), "class folder holds no image"),
        ("places365-easyformat", remove("val/field-road"), "has no folder"),
        ("imagefolder:{}/own", remove("train/n02/*"), "class folder holds no image"),
        ("places365", replace("categories_places365.txt", "/f/", "/z/zoo 3\n/f/"), "'zoo' has no"),
    ],
    "flat-folder": [
        ("imagenet", flatten, "holds no class folder"),
        ("imagefolder:{}/own", flatten, "holds no class folder"),
        (
            "imagefolder:{}/own",
            lambda home: picture(home / "train/cover.jpg", 1),
            "holds 'cover.jpg', image 1 of 1 that are in no class folder",
        ),
    ],
    "split-missing": [("imagefolder:{}/own", remove("val"), "does not exist")],
    "duplicate-entry": [
        ("places365", replace(PLACES, "airfield/00000001", "airfield/00000000"), "listed twice"),
        ("inat2018", edit("train2018.json", double), "listed twice"),
    ],
    "folder-and-label": [
        (
            "places365",
            replace(PLACES, "00000001.jpg 1", "00000001.jpg 2"),
            "label 2 ('field/wild')",
        ),
        (
            "places205",
            replace("trainvalsplit_places205/val_places205.csv", " 2", " 1"),
            "'field/wild'",
        ),
    ],
    "long-tail": [
        (
            "imagefolder:{}/own",
            lambda h: [picture(h / f"train/n01/{k}.png", k) for k in range(50)],
            "53",
        )
    ],
    "unknown-image": [
        ("inat2019", replace("val2019.json", '"image_id": 1000', '"image_id": 7'), "image 7"),
        (COCO, annotation(image_id=999), "of image 999 is of an image"),
    ],
    "unknown-category": [(COCO, annotation(category_id=4), "category 4")],
    "category-ids": [
        (
            "coco",
            edit("annotations/instances_val2017.json", lambda c: c["categories"][2].update(id=12)),
            "12 is no category id of COCO",
        )
    ],
    "id-gaps": [(COCO, lambda home: None, "3 categories with ids from 2 to 7, mapped to 0 to 2")],
    "duplicate-id": [
        (COCO, annotation(id=2), "2 annotations have the id 2"),
        ("inat2017", edit("val2017.json", lambda c: c["images"][0].update(id=1001)), "the same id"),
        (COCO, train_json(lambda c: c["images"][0].update(id=101)), "2 images have the id 101"),
        (COCO, train_json(lambda c: c["categories"][0].update(id=3)), "2 categories have the id 3"),
    ],
    "duplicate-image": [
        (
            COCO,
            replace("train/_annotations.coco.json", "000000000101.jpg", "000000000100.jpg"),
            "2 times",
        )
    ],
    "no-annotations": [(COCO, train_json(lambda c: c["annotations"].clear()), "no annotation")],
    "box-form": [
        (COCO, annotation(bbox=[1, 2, 3]), "box [1, 2, 3]"),
        (COCO, annotation(bbox=None), "box None"),
        (COCO, annotation(bbox=[1, 2, float("nan"), 4]), "nan"),
        (COCO, annotation(bbox=[1, 2, 10**400, 4]), "has the box [1, 2, 1000"),
    ],
    "box-empty": [
        (COCO, annotation(bbox=[1, 2, 0, 4]), "[1, 2, 0, 4]"),
        (COCO, annotation(bbox=[9, 9, -3, 4]), "[9, 9, -3, 4]"),
    ],
    "box-outside": [
        (COCO, annotation(bbox=[20, 2, 8, 4]), "its image is 24 x 16"),
        (COCO, annotation(bbox=[-3, 2, 8, 4]), "[-3, 2, 8, 4]"),
        (COCO, annotation(bbox=[2, 9, 8, 12]), "[2, 9, 8, 12]"),
    ],
    "no-segmentation": [
        (COCO, annotation(segmentation=[]), "has no mask"),
        (COCO, annotation(segmentation=None), "has no mask"),
    ],
    "polygon": [
        (COCO, annotation(segmentation=[[1, 1, 5, 5]]), "4 numbers"),
        (COCO, annotation(segmentation=[[*SQUARE, 7]]), "7 numbers"),
        (COCO, annotation(segmentation=[["1", "1", "5", "1", "5", "5"]]), "finite numbers"),
    ],
    "polygon-outside": [
        (COCO, annotation(segmentation=[[1, 1, 1e12, 1, 5, 5]]), "x = 1 to 1e+12, its image is 24"),
        (COCO, annotation(segmentation=[[1, 1, 5, 1, 5, -17]]), "y = -17 to 1"),
    ],
    "area": [
        (COCO, annotation(area="12"), "has the area '12'"),
        (COCO, annotation(area=float("nan")), "has the area nan"),
        (COCO, annotation(area=-1), "has the area -1"),
    ],
    "rle": [
        (COCO, crowd(segmentation={**RLE, "counts": [7]}), "do not fill its 16 x 24"),
        (
            COCO,
            crowd(segmentation={**RLE, "size": [WIDTH, HEIGHT]}),
            "16 x 24, its image is 24 x 16",
        ),
        (COCO, crowd(segmentation={"counts": [7]}), "of size None"),
        (COCO, crowd(segmentation={**RLE, "counts": "T"}), "do not fill"),
    ],
    "mixed-segmentation": [
        (COCO, annotation(segmentation=[SQUARE, RLE]), "neither polygons nor"),
        (COCO, annotation(segmentation="polygon"), "neither polygons nor"),
    ],
    "two-formats": [(COCO, annotation(segmentation=RLE), "5 single objects have polygons, 1 run")],
    "no-id": [
        (COCO, train_json(lambda c: c["annotations"][0].pop("id")), "None of image 100 has no"),
        (COCO, annotation(id=[1]), "has no id, a whole number"),
    ],
    "ignore-flag": [(COCO, annotation(ignore=1), "has ignore 1")],
    "no-size": [
        (COCO, train_json(lambda c: c["images"][0].pop("width")), "the size None x 16"),
        (COCO, train_json(lambda c: c["images"][0].update(height=0)), "the size 24 x 0"),
        (COCO, train_json(lambda c: c["images"][0].update(width=10**400)), "has the size 1000"),
    ],
    "crowd-flag": [
        (COCO, annotation(iscrowd=2), "has iscrowd 2"),
        (COCO, annotation(iscrowd=[1]), "has iscrowd [1]"),
    ],
    "no-label": [
        ("inat2017", edit("train2017.json", lambda c: c["annotations"].pop()), "has no annotation")
    ],
    "crowd-polygon": [(COCO, crowd(segmentation=[SQUARE]), "is a crowd of polygons")],
    "image-size": [
        (COCO, lambda home: picture(home / "train/000000000100.jpg", 1, (30, 20)), "is 30 x 20 pix")
    ],
    "image-depth": [(COCO, deep, "has pixels of mode I;16, which detectron2 clips at 255")],
    "pairs": [
        (ADE20K, remove("ann_dir/train/2.png"), "has no map 2.png"),
        ("ade20k", remove("images/validation/5.jpg"), "has no image 5.jpg"),
    ],
    "map-format": [(ADE20K, label_map(lambda m: np.stack([m] * 3, -1)), "of mode RGB")],
    "map-encoding": [
        (ADE20K, palette, "the indices of a palette"),
        (ADE20K, label_map(lambda m: m.astype(np.uint16)), "pixels of mode I;16"),
    ],
    "map-size": [(ADE20K, label_map(lambda m: m[:, :20]), "is 20 x 16 pixels, its image 24 x 16")],
    "map-values": [
        (ADE20K, label_map(lambda m: m + np.uint8(7)), "holds [7, 8, 9, 10]; classes are 0 to 3"),
        (ADE20K, label_map(lambda m: m.astype(np.uint16) + 300), "holds [300, 301, 302, 303]"),
    ],
    "zero-label": [
        ("ade20k", shifted, "look shifted already"),
        (ADE20K, label_map(lambda m: m + np.uint8(1)), "0 seems to be unlabelled"),
    ],
    "unused-class": [(ADE20K, without_road, "no pixel of road")],
}
CASES = [
    pytest.param(rule, *case, id=f"{rule}-{number}")
    for rule, cases in PLANTED.items()
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize(("rule", "key", "plant", "said"), CASES)
def test_a_planted_fault_is_caught(rule, key, plant, said, tmp_path):
    """With its rule and file, and as a fault unless the rule is a note."""
    _, home = make(key, tmp_path)
    before = rules_of(examine(key, tmp_path))
    plant(home)
    report = examine(key, tmp_path)
    found = [f for f in report.findings if f.rule == rule and said in f.value]
    assert found, report.findings
    assert all(f.level == ("note" if RULES[rule].is_note else "fault") for f in found)
    assert all(str(home) in f.file for f in found)
    assert rule not in before or rule == "id-gaps"


def test_every_rule_has_its_planted_fault():
    assert set(PLANTED) | {"count", "class-count"} == set(RULES)


# --- published counts ------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published dataset of the size of its tree."""
    _, home = make("imagenet", tmp_path)

    def publish(**counts) -> Path:
        size = Counts(**{"classes": 3, "train": 9, "val": 3, **counts})
        monkeypatch.setitem(DATASETS, "imagenet", Dataset("imagenet", None, ("imagenet",), size))
        return home

    return publish


@pytest.mark.parametrize(
    ("counts", "rule", "said"),
    [
        ({"train": 10}, "count", "train has 9 images, 10 are published; a subset is named as such"),
        ({"val": 2}, "count", "val has 3 images, 2 are published"),
        ({"classes": 4}, "class-count", "train has 3 classes, 4 are published"),
    ],
)
def test_published_counts(counts, rule, said, published, tmp_path):
    published()
    assert verify("imagenet", tmp_path).findings == []
    home = published(**counts)
    faults = verify("imagenet", tmp_path).faults
    assert {fault.rule for fault in faults} == {rule} and said in faults[0].value
    with pytest.raises(UserError, match=r"dataset 'imagenet' has faults: .* are published"):
        check("imagenet", tmp_path, "classification")
    # Fewer are allowed where that is said, more never.
    named = verify("imagenet", tmp_path, subset=True)
    assert bool(named.faults) == ("val" in counts) and named.subset
    (home / "subset.txt").write_text("half of it, for trying out\n")
    assert verify("imagenet", tmp_path).faults == named.faults
    if "val" not in counts:
        check("imagenet", tmp_path, "classification")


def test_what_owners_ship_is_no_fault_of_a_complete_set(published, tmp_path):
    home = published()
    shutil.copy(home / "val/n01/n01_3.JPEG", home / "train/n01/n01_1.JPEG")
    report = verify("imagenet", tmp_path)
    assert [(f.rule, f.level) for f in report.findings] == [("overlap", "note")]
    assert [f.level for f in verify("imagenet", tmp_path, subset=True).findings] == ["note"]
    (home / "train/n02/n02_1.JPEG").unlink()
    assert [f.level for f in verify("imagenet", tmp_path, subset=True).findings] == ["fault"]


def test_published_sizes_are_those_of_their_owners():
    """Source: the owners' pages; see docs/data.md."""
    expected = {
        "imagenet": (1000, 1_281_167, 50_000),
        "inat2017": (5089, 579_184, 95_986),
        "inat2018": (8142, 437_513, 24_426),
        "places365": (365, 1_803_460, 36_500),
        "coco": (80, 118_287, 5_000),
        "ade20k": (150, 20_210, 2_000),
    }
    for name, counts in expected.items():
        assert DATASETS[name].counts == counts
    inat2019 = DATASETS["inat2019"].counts
    assert inat2019.classes == 1010 and inat2019.train + inat2019.val == 268_243
    assert len(COCO_IDS) == 80


# --- how ------------------------------------------------------------------------------------


def test_all_faults_are_told_not_the_first_one(tmp_path):
    _, home = make("places365", tmp_path)
    listing = home / PLACES
    lines = listing.read_text().splitlines()
    lines[0] = lines[0].replace(" 0", " 7")
    lines[1] = "../../x.jpg 0"
    lines[2] = "no label"
    listing.write_text("\n".join(lines) + "\n")
    (home / "val_large/Places365_val_00000002.jpg").write_bytes(b"")
    found = rules_of(examine("places365", tmp_path))
    assert found == {"label-range", "outside-root", "list-line", "unreadable-image", "empty-class"}
    with pytest.raises(UserError, match=r"list-line\).*; and \d more|and 1 more"):
        check("places365", tmp_path, "classification", subset=True)


def test_lists_alone_find_missing_files_and_read_none(tmp_path):
    _, home = make("places365", tmp_path)
    cut_off("val_large/*0.jpg")(home)
    remove("val_large/*1.jpg")(home)
    report = examine("places365", tmp_path, read_images=False)
    assert rules_of(report) == {"missing-image"} and report.files_read == 0
    assert rules_of(examine("places365", tmp_path)) == {"missing-image", "unreadable-image"}


@pytest.mark.parametrize("workers", [1, 3])
def test_findings_do_not_depend_on_the_number_of_threads(workers, tmp_path):
    _, home = make("imagenet", tmp_path)
    for path in sorted(home.glob("train/*/*"))[::2]:
        cut_off(str(path.relative_to(home)))(home)
    told = []
    report = examine("imagenet", tmp_path, workers=workers, progress=lambda *at: told.append(at))
    broken = [finding.file for finding in report.findings]
    assert broken == [str(path) for path in sorted(home.glob("train/*/*"))[::2]]
    assert told == [(done, 12) for done in range(1, 13)] and report.files_read == 12


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_reduced_decoding_finds_what_a_whole_one_finds(mode, options, tmp_path):
    """Cut off anywhere, or with bytes that are wrong: the verdict is Pillow's on every pixel."""
    rng, path, verdicts = np.random.default_rng(0), tmp_path / "x.jpg", set()
    pixels = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    whole = path.read_bytes()
    for number in range(24):
        damaged = bytearray(whole)
        if number % 3 == 0:
            damaged = damaged[: int(len(damaged) * rng.random())]
        for _ in range((0, 10, 200)[number % 3]):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        found = scan_image(path).error is None
        assert found == readable(path)
        verdicts.add(found)
    assert verdicts == {True, False}


def readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # whatever Pillow raises
        return False
    return True


def test_runs_of_compressed_masks_are_those_of_pycocotools():
    mask = pytest.importorskip("pycocotools.mask")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pixels = (rng.random((40, 57)) < rng.choice([0.02, 0.5, 0.99])).astype(np.uint8)
        runs = runs_of(mask.encode(np.asfortranarray(pixels))["counts"].decode())
        flat = pixels.ravel(order="F")
        edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
        expected = ([0] if flat[0] else []) + np.diff(edges).tolist()
        assert runs == expected


# --- before a run ----------------------------------------------------------------------------


def test_a_run_does_not_start_on_a_dataset_with_a_fault(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, home = make(COCO, tmp_path)
    annotation(bbox=[1, 2, 0, 4])(home)
    words = "transfer --task detection --dataset coco-format:own --init random --work-dir work"
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert "has faults: " in said and "(box-empty)" in said and said.count("\n") == 1
    assert "mae-bench data verify coco-format:" in said and not (tmp_path / "work").exists()


def test_own_images_without_labels_are_checked_for_what_pretraining_needs(tmp_path):
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    name = f"imagefolder:{tmp_path}"
    check(name, tmp_path, "pretraining")
    listing = tmp_path / "lists" / "list.txt"
    listing.parent.mkdir()
    listing.write_text("../a.png 0\n../b.png 1\n")
    check(f"filelist:{listing}", tmp_path, "pretraining")
    with pytest.raises(UserError, match=r"list.txt: names .*a.png, which is outside of .*outside"):
        check(f"filelist:{listing}", listing.parent, "pretraining")
    with pytest.raises(UserError, match="is not one for detection"):
        check(name, tmp_path, "detection")


@pytest.mark.parametrize("kind", ["filelist", "tar"])
def test_lists_and_shards_are_verified_too(kind, tmp_path):
    for k in range(60):
        picture(tmp_path / f"{k:02}.png", k)
    (tmp_path / "07.png").write_bytes(b"no image")
    names = [f"{k:02}.png" for k in range(60)]
    (tmp_path / "list.txt").write_text("".join(f"{name} {k % 2}\n" for k, name in enumerate(names)))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in names:
            archive.add(tmp_path / name, f"c/{name}")
    place = {"filelist": "list.txt", "tar": "x.tar"}[kind]
    report = verify(f"{kind}:{tmp_path / place}", tmp_path)
    assert [(f.rule, f.file[-6:]) for f in report.faults] == [("unreadable-image", "07.png")]
    assert report.files_read == 60 and report.fingerprint
    check(f"{kind}:{tmp_path / place}", tmp_path, "pretraining")


# --- the command -----------------------------------------------------------------------------


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["data", *words])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_verify_prints_facts_faults_and_an_exit_code(tmp_path, capsys):
    _, home = make("imagenet", tmp_path)
    words = ("verify", "imagenet", "--data-root", str(tmp_path))
    code, out, _ = run(capsys, *words, "--subset")
    assert code == 0 and "train: 9 images, 3 classes" in out and "no fault" in out
    code, out, _ = run(capsys, *words)
    assert code == 1 and "1281167 are published" in out and "4 faults" in out
    cut_off("val/n02/*")(home)
    code, out, _ = run(capsys, *words, "--subset")
    assert code == 1 and "fault unreadable-image: " in out and "n02_3.JPEG: Trunc" in out
    code, out, _ = run(capsys, *words, "--subset", "--lists-only")
    assert code == 0 and "no image read" in out
    code, out, _ = run(capsys, *words, "--subset", "--json")
    report = json.loads(out)
    assert code == 1 and report["faults"] == 1 and report["findings"][0]["file"].endswith("JPEG")
    assert report["splits"]["val"]["histogram"] == {"n01": 1, "n02": 1, "n03": 1}


def test_what_explains_other_faults_is_said_first(tmp_path):
    _, home = make("imagenet", tmp_path)
    flatten(home)
    assert verify("imagenet", tmp_path).faults[0].rule == "flat-folder"
    with pytest.raises(UserError, match=r"has faults: [^;]* holds no class folder"):
        check("imagenet", tmp_path, "classification")


def test_odd_names_are_read_and_printed_on_one_line(tmp_path, capfdbinary):
    """Line ends, terminal codes, and bytes that are no UTF-8."""
    _, home = make("imagenet", tmp_path)
    folder = home / "train/n01"
    for number, name in enumerate((
        b"a\nb.jpg",
        b"\x1b[31m.jpg",
        b"\xff.jpg",
        "\u4e2d \u00fc.jpg".encode(),
    )):
        picture(folder / "new.jpg", 50 + number)
        os.rename(folder / "new.jpg", os.path.join(os.fsencode(folder), name))
    for name in ("imagenet", f"imagefolder:{home}"):
        assert verify(name, tmp_path, subset=True).faults == []
        assert main(["data", "verify", name, "--data-root", str(tmp_path), "--subset"]) == 0
    for path in folder.iterdir():
        path.write_bytes(b"")
    capfdbinary.readouterr()
    assert main(["data", "verify", f"imagefolder:{home}"]) == 1
    said = capfdbinary.readouterr().out.decode()
    for name in (r"a\nb.jpg", r"\x1b[31m.jpg", r"\udcff.jpg", "\u4e2d \u00fc.jpg"):
        assert f"/{name}: it is no image" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify"], "which dataset?"),
        (["verify", "imagnet"], "unknown dataset 'imagnet'. Did you mean imagenet"),
        (["verify", "coco", "--data-root", "nowhere"], "is missing: nowhere/coco does not exist"),
        (["verify", "coco-format:gone"], "gone does not exist"),
        (["prepare", "coco"], "'coco' cannot be generated: get it from its owner"),
        (["prepare", "minni"], "Did you mean mini"),
    ],
)
def test_mistakes_are_one_line_and_code_2(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


def test_lists_of_datasets_and_rules(tmp_path, capsys):
    make("coco", tmp_path)
    code, out, _ = run(capsys, "list", "--data-root", str(tmp_path), "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and set(DATASETS) < set(rows) and "coco-format:DIR" in rows
    assert rows["coco"]["there"] and not rows["ade20k"]["there"]
    assert rows["inat2018"]["classes"] == 8142
    code, out, _ = run(capsys, "list")
    assert code == 0 and "places365-easyformat" in out
    code, out, _ = run(capsys, "verify", "--rules")
    assert code == 0 and all(rule in out for rule in RULES)
