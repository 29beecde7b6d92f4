"""Readers of every layout, on tiny trees as the owners ship them, and what identifies a tree."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from fake_datasets import SPECIES, TREES, ade20k, coco_json, make, picture

from mae_bench.errors import UserError
from tasks.data import (
    DATASETS,
    ade20k_split,
    classification_split,
    coco_split,
    fingerprint,
    fingerprints,
    get_dataset,
    read_split,
)
from tasks.data.formats import Files

PLACE_NAMES = ["airfield", "field/road", "field/wild"]
LABELLED = [name for name in TREES if get_dataset(name).kind == "labelled"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def test_every_published_dataset_has_a_tree():
    assert {name for name, known in DATASETS.items() if not known.spec} <= set(TREES)


# --- labelled images -------------------------------------------------------------------------


@pytest.mark.parametrize("key", LABELLED)
def test_labelled_images_exist_and_splits_share_none(key, tmp_path):
    name, _ = make(key, tmp_path)
    train, val = (classification_split(name, tmp_path, split) for split in ("train", "val"))
    assert len(train.classes) == 3 and train.classes == val.classes
    assert sorted(set(train.labels)) == [0, 1, 2] and sorted(val.labels) == [0, 1, 2]
    assert all(path.is_file() for path in (*train.paths, *val.paths))
    assert not set(train.paths) & set(val.paths)


@pytest.mark.parametrize("year", [2017, 2018, 2019])
def test_inat_follows_the_json_of_each_year(year, tmp_path):
    """Folders are renamed to mislead: labels stay what the json says."""
    name, home = make(f"inat{year}", tmp_path)
    for split in ("train", "val"):
        path = home / f"{split}{year}.json"
        content = json.loads(path.read_text())
        content["categories"] = [
            {"id": 10 - c["id"], "name": c["name"]} for c in content["categories"]
        ]
        for label in content["annotations"]:
            label["category_id"] = 10 - label["category_id"]
        path.write_text(json.dumps(content))
    data = classification_split(name, tmp_path, "train")
    assert data.classes == list(reversed(SPECIES)) and data.labels == [2, 2, 1, 1, 0, 0]
    assert all(path.parts[-3] == "Insecta" for path in data.paths)


@pytest.mark.parametrize("key", ["places365", "places365-small"])
def test_places365_sizes_and_both_names_of_the_training_folder(key, tmp_path):
    name, home = make(key, tmp_path)
    folder = next(home.glob("data_*_standard"))
    before = classification_split(name, tmp_path, "train")
    folder.rename(home / folder.name.removesuffix("_standard"))
    after = classification_split(name, tmp_path, "train")
    assert before.labels == after.labels and before.classes == [
        "airfield",
        "field/road",
        "field/wild",
    ]
    assert after.paths[0].parts[-4:] == (
        folder.name.removesuffix("_standard"),
        "a",
        "airfield",
        "00000000.jpg",
    )
    other = {"places365": "places365-small", "places365-small": "places365"}[key]
    with pytest.raises(UserError, match="the image folder of the train split is missing"):
        classification_split(other, tmp_path, "train")


def test_easyformat_has_the_labels_of_the_published_list(tmp_path):
    """Also where that is not the order of the names."""
    name, _ = make("places365-easyformat", tmp_path)
    assert classification_split(name, tmp_path, "val").classes == [
        "airfield",
        "field/road",
        "field/wild",
    ]
    (tmp_path / "places365").mkdir()
    listing = tmp_path / "places365" / "categories_places365.txt"
    listing.write_text("/f/field/wild 0\n/a/airfield 1\n/f/field/road 2\n")
    data = classification_split(name, tmp_path, "val")
    assert data.classes == ["field/wild", "airfield", "field/road"]
    assert {
        path.parent.name: label for path, label in zip(data.paths, data.labels, strict=True)
    } == {
        "airfield": 1,
        "field-road": 2,
        "field-wild": 0,
    }
    listing.write_text("/a/airfield 0\n/f/field/road 1\n")
    with pytest.raises(UserError, match="field-wild: is the folder of no known class"):
        classification_split(name, tmp_path, "val")


def test_places205_names_classes_by_their_folders_and_labels_by_the_list(tmp_path):
    name, home = make("places205", tmp_path)
    for split in ("train", "val"):
        path = home / f"trainvalsplit_places205/{split}_places205.csv"
        lines = [line.rpartition(" ") for line in path.read_text().splitlines()]
        path.write_text("".join(f"{place} {2 - int(label)}\n" for place, _, label in lines))
    data = classification_split(name, tmp_path, "val")
    assert data.classes == PLACE_NAMES[::-1] and data.labels == [2, 1, 0]


LISTS = {
    "inat2018": ("train2018.json", "train_val2018/Insecta/0/train0.jpg"),
    "places365": ("places365_train_standard.txt", "/a/airfield/00000000.jpg"),
    "places205": ("trainvalsplit_places205/train_places205.csv", "a/airfield/train0.jpg"),
}


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize(
    "outside", ["../../elsewhere.jpg", "a/../../elsewhere.jpg", "//etc/passwd"]
)
def test_a_list_that_points_outside_the_root_is_refused(key, outside, tmp_path):
    name, home = make(key, tmp_path)
    file, listed = LISTS[key]
    picture(tmp_path / "elsewhere.jpg", 1)
    content = (home / file).read_text()
    assert listed in content
    (home / file).write_text(content.replace(listed, outside, 1))
    with pytest.raises(UserError, match=r"names '.*', outside of .*data verify` lists"):
        classification_split(name, tmp_path, "train")


def test_many_files_are_a_sequence_of_paths(tmp_path):
    names = ["a/1.jpg", "b/ü.jpg", "c.jpg"]
    files = Files(tmp_path, names)
    assert list(files) == [tmp_path / name for name in names] == files[:] and len(files) == 3
    assert files[-1] == tmp_path / "c.jpg" and files[1:] == [tmp_path / n for n in names[1:]]
    assert list(files.texts()) == [str(tmp_path / name) for name in names]
    with pytest.raises(IndexError):
        files[3]
    assert len(pickle.dumps(Files(tmp_path, [f"{k:08}.jpg" for k in range(10_000)]))) < 250_000


# --- COCO ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["coco", "coco-format:{}/own"])
def test_coco_files_and_folders(key, tmp_path):
    name, _ = make(key, tmp_path)
    for split, first in (("train", 100), ("val", 200)):
        found = coco_split(name, tmp_path, split)
        assert found.classes == ["thing2", "thing3", "thing7"]
        assert json.loads(found.json.read_text())["images"][0]["id"] == first
        assert (found.images / f"{first:012}.jpg").is_file()


@pytest.mark.parametrize(
    ("json_file", "images", "prefix"),
    [
        ("annotations/instances_train2017.json", "train2017", ""),
        ("annotations/instances_train.json", "images/train", ""),
        ("annotations/train.json", "images", ""),
        ("train.json", "images", "train/"),
        ("instances_train_v2.json", "train", ""),
        ("train/_annotations.coco.json", "train", ""),
        ("train.json", ".", "pictures/"),
    ],
)
def test_places_of_a_users_coco_files(json_file, images, prefix, tmp_path):
    path = tmp_path / json_file
    coco_json(path, tmp_path / images / prefix, 1)
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["file_name"] = prefix + image["file_name"]
    path.write_text(json.dumps(content))
    found = coco_split(f"coco-format:{tmp_path}", Path(), "train")
    assert found.json == path and (found.images / content["images"][0]["file_name"]).is_file()
    with pytest.raises(
        UserError, match=r"no annotation file for val; it may be one of: annotations/"
    ):
        coco_split(f"coco-format:{tmp_path}", Path(), "val")


def test_unclear_coco_files_are_refused(tmp_path):
    name, home = make("coco-format:{}/own", tmp_path)
    coco_json(home / "train_a.json", home / "train", 100)
    coco_json(home / "train_b.json", home / "train", 100)
    with pytest.raises(
        UserError, match=r"several annotation files for train: train_a\.json, train_b"
    ):
        coco_split(name, tmp_path, "train")
    path = home / "valid/_annotations.coco.json"
    content = json.loads(path.read_text())
    for picture_file in (home / "valid").glob("*.jpg"):
        picture_file.unlink()
    with pytest.raises(
        UserError, match=r"names 000000000200\.jpg, which is in none of these folders"
    ):
        coco_split(name, tmp_path, "val")
    for change, message in (
        ({"images": []}, "lists no image"),
        ({"categories": []}, "has no categories"),
        ({"categories": [{"name": "x"}]}, "id of entry 0 of categories is None"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=message):
            coco_split(name, tmp_path, "val")


# --- ADE20K ----------------------------------------------------------------------------------


def test_ade20k_and_users_sets(tmp_path):
    name, _ = make("ade20k", tmp_path)
    official = ade20k_split(name, tmp_path, "train")
    assert official.classes == ["wall", "sky", "tree"] and official.reduce_zero_label
    name, home = make("ade20k-format:{}/own", tmp_path)
    own = ade20k_split(name, tmp_path, "val")
    assert own.classes == ["wall", "sky", "tree", "road"] and not own.reduce_zero_label
    assert own.images == home / "img_dir/val" and own.annotations == home / "ann_dir/val"
    assert (own.image_suffix, own.map_suffix, own.ignore_value) == (".jpg", ".png", 255)


def test_a_users_set_with_the_folders_of_ade20k_and_a_plain_class_list(tmp_path):
    ade20k(tmp_path / "own")
    (tmp_path / "own/objectInfo150.txt").unlink()
    (tmp_path / "own/classes.txt").write_text("wall\n\nnight sky\ntree\n")
    for path in (tmp_path / "own/images").rglob("*.jpg"):
        path.rename(path.with_suffix(".jpeg"))
    found = ade20k_split(f"ade20k-format:{tmp_path}/own", Path(), "train")
    assert found.classes == ["wall", "night sky", "tree"] and found.reduce_zero_label
    assert found.image_suffix == ".jpeg" and found.images.name == "training"


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ('{"classes": ["a"], "zero": 1}', "zero: Extra inputs"),
        ('{"classes": []}', "names 0 classes; 1 to 255"),
        ("{", "file: Invalid JSON"),
        ('{"classes": ["a"], "palette": [[1, 2, 3], [4, 5, 6]]}', "2 colours for 1 classes"),
        (
            '{"classes": ["a"], "palette": [[1, 2, 256]]}',
            "palette.0.2: .* than or equal to 255",
        ),
        ('{"classes": ["a", "b", "a"]}', "a name of its own; 'a' is none"),
        ('{"classes": ["a", ""]}', "a name of its own; '' is none"),
        (json.dumps({"classes": [str(k) for k in range(255)]}), "255 is the value of '254' and"),
    ],
)
def test_a_wrong_dataset_file_is_refused(about, message, tmp_path):
    name, home = make("ade20k-format:{}/own", tmp_path)
    (home / "dataset.json").write_text(about)
    with pytest.raises(UserError, match=message):
        ade20k_split(name, tmp_path, "train")


def test_what_a_users_set_lacks_is_said(tmp_path):
    name, home = make("ade20k-format:{}/own", tmp_path)
    picture(home / "img_dir/train/x.png", 1)
    with pytest.raises(UserError, match=r"files of several suffixes \(\.jpg, \.png\)"):
        ade20k_split(name, tmp_path, "train")
    (home / "img_dir/val").rename(home / "img_dir/other")
    with pytest.raises(
        UserError, match="no image folder of the val split; it may be one of: images/val"
    ):
        ade20k_split(name, tmp_path, "val")
    (home / "dataset.json").unlink()
    with pytest.raises(
        UserError, match=r"class list is missing.*\(nor objectInfo150.txt, classes.txt"
    ):
        ade20k_split(name, tmp_path, "train")


# --- places and fingerprints -----------------------------------------------------------------


@pytest.mark.parametrize("key", [name for name in TREES if ":" not in name])
def test_the_data_root_may_be_the_dataset_itself(key, tmp_path):
    name, home = make(key, tmp_path)
    below, itself = (read_split(name, root, "val") for root in (tmp_path, home))
    assert below == itself and fingerprint(name, tmp_path) == fingerprint(name, home)


@pytest.mark.parametrize("key", TREES)
def test_fingerprints_follow_the_content_not_the_place(key, tmp_path):
    (name, home), (copy, _) = make(key, tmp_path / "a"), make(key, tmp_path / "b")
    first = fingerprint(name, tmp_path / "a")
    assert first == fingerprint(copy, tmp_path / "b") and len(first) == 16
    image = next(path for path in sorted(home.rglob("*")) if path.suffix in {".jpg", ".JPEG"})
    image.write_bytes(image.read_bytes() + b"more")
    second = fingerprint(name, tmp_path / "a")
    image.with_name(f"another{image.suffix}").write_bytes(b"")
    third = fingerprint(name, tmp_path / "a")
    assert len({first, second, third}) == 3
    texts = [p for p in sorted(home.rglob("*")) if p.suffix in {".json", ".txt", ".csv"}]
    for path in texts:
        path.write_text(path.read_text() + "\n")
        third, before = fingerprint(name, tmp_path / "a"), third
        assert third != before, path


@pytest.mark.parametrize("key", [name for name in TREES if ":" not in name])
def test_what_is_not_there_has_no_fingerprint(key, tmp_path):
    with pytest.raises(UserError, match=r"is missing: .* does not exist.*check --data-root"):
        fingerprint(key, tmp_path)


def test_a_walk_that_took_long_is_remembered(tmp_path, cache, monkeypatch):
    name, home = make("imagenet", tmp_path)
    for folder in [home, *home.rglob("*/")]:
        os.utime(folder, (1, 1))
    slow = fingerprint(name, tmp_path)
    assert not list(cache.rglob("*.json"))
    monkeypatch.setattr(fingerprints, "SECONDS_WORTH_REMEMBERING", 0.0)
    assert fingerprint(name, tmp_path) == slow and len(list(cache.rglob("*.json"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "walk", None)
        assert fingerprint(name, tmp_path) == slow
    picture(home / "train/n01/more.jpg", 1)
    assert fingerprint(name, tmp_path) != slow


def test_links_in_a_circle_end_the_walk(tmp_path):
    name, home = make("imagenet", tmp_path)
    (home / "train/n01/back").symlink_to(home / "train")
    (home / "train/n01/gone.jpg").symlink_to(tmp_path / "nowhere")
    assert len(fingerprint(name, tmp_path)) == 16


def test_fingerprints_need_nothing_heavy(tmp_path):
    names = [make(key, tmp_path / str(k))[0] for k, key in enumerate(TREES)]
    code = (
        f"import sys, pathlib, tasks.data as data; root = pathlib.Path({str(tmp_path)!r});"
        f"[data.fingerprint(name, root / str(k)) for k, name in enumerate({names})];"
        "print(sorted({'torch', 'cv2', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
