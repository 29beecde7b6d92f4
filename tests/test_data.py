"""Datasets by name: preparing them, identifying them, reading the real formats."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mae_bench.errors import UserError
from tasks.data import (
    DATASETS,
    MARKER,
    ade20k_split,
    classification_split,
    coco_split,
    fingerprint,
    prepare,
)
from tasks.data.dense import read_ade20k, read_coco
from tasks.data.formats import class_colour
from tasks.data.labelled import read_imagefolder, read_inat, read_places365
from tasks.data.specs import SPECS, spec_fingerprint

TINY = replace(SPECS["mini-places"], train_per_class=1, val_per_class=1)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- names and fingerprints ------------------------------------------------------------------


def test_planning_loads_no_torch_and_no_opencv(tmp_path):
    code = (
        "import sys, pathlib, tasks.data as data;"
        f"root = pathlib.Path({str(tmp_path)!r});"
        "[data.fingerprint(n, root) for n, known in data.DATASETS.items() if known.spec];"
        "heavy = {'torch', 'cv2', 'numpy', 'PIL'} & set(sys.modules); print(sorted(heavy))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_fingerprints_differ_and_need_no_data(tmp_path):
    mini = [name for name, known in DATASETS.items() if known.spec]
    prints = {fingerprint(name, tmp_path / "nowhere") for name in mini}
    assert len(prints) == len(mini) == 5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"train_per_class": 21}, {"seed": 1}, {"size_px": 72}])
def test_fingerprint_covers_the_spec(change):
    spec = SPECS["mini-places"]
    assert spec_fingerprint(replace(spec, **change)) != spec_fingerprint(spec)


def test_fingerprint_covers_the_drawing(monkeypatch):
    before = fingerprint("mini-coco", Path())
    monkeypatch.setattr("tasks.data.specs.WORLD_VERSION", -1)
    assert fingerprint("mini-coco", Path()) != before


def test_fingerprint_is_the_same_in_another_process(tmp_path):
    code = "import pathlib, tasks.data as d; print(d.fingerprint('mini-coco', pathlib.Path()))"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip()
    assert other == fingerprint("mini-coco", tmp_path)


@pytest.mark.parametrize("function", [fingerprint, prepare])
def test_unknown_dataset(tmp_path, function):
    with pytest.raises(UserError, match=r"unknown dataset 'mini-cocoa'\. Did you mean mini-coco"):
        function("mini-cocoa", tmp_path)


def test_dataset_of_another_task(tmp_path):
    with pytest.raises(UserError, match="'mini-coco' is not one for classification; these are"):
        classification_split("mini-coco", tmp_path, "train")
    with pytest.raises(UserError, match="'mini-inat' is not one for detection"):
        coco_split("mini-inat", tmp_path, "train")


# --- preparing -------------------------------------------------------------------------------


def test_prepare_twice_draws_once(tmp_path):
    prepare("mini-places", tmp_path, TINY)
    marker = tmp_path / "mini-places" / MARKER
    before = marker.stat().st_mtime_ns
    prepare("mini-places", tmp_path, TINY)
    assert marker.stat().st_mtime_ns == before
    assert not (tmp_path / ".mini-places.partial").exists()


@pytest.mark.parametrize("damage", ["no marker", "other fingerprint", "left-over partial"])
def test_a_half_made_or_outdated_set_is_made_again(tmp_path, damage):
    prepare("mini-places", tmp_path, TINY)
    folder = tmp_path / "mini-places"
    whole = listing(folder)
    stale = folder / "places365" / "places365_val.txt"
    if damage == "left-over partial":
        folder.rename(tmp_path / ".mini-places.partial")
        (tmp_path / ".mini-places.partial" / "stray").write_text("")
    elif damage == "no marker":
        (folder / MARKER).unlink()
        stale.unlink()
    else:
        (folder / MARKER).write_text("0123456789abcdef\n")
        (folder / "stray").write_text("")
    prepare("mini-places", tmp_path, TINY)
    assert listing(folder) == whole


def _prepare_when_told(root: Path, barrier) -> None:
    barrier.wait()
    prepare("mini-places", root, replace(TINY, train_per_class=4))
    assert len(classification_split("mini-places", root, "train").paths) == 32


def test_processes_that_prepare_at_once_share_one_set(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_prepare_when_told, args=(tmp_path, barrier)) for _ in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mini-places.lock", "mini-places"]


def test_a_killed_generation_leaves_no_set_and_no_lock(tmp_path):
    code = (
        "import pathlib, tasks.data as data;"
        f"data.prepare('mini-imagenet', pathlib.Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    partial = tmp_path / ".mini-imagenet.partial"
    deadline = time.monotonic() + 60
    while not list(partial.rglob("*.JPEG")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert list(partial.rglob("*.JPEG")) and not (tmp_path / "mini-imagenet").exists()
    small = replace(SPECS["mini-imagenet"], train_per_class=1, val_per_class=1)
    prepare("mini-imagenet", tmp_path, small)
    assert len(classification_split("mini-imagenet", tmp_path, "train").paths) == 12


def test_a_data_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write dataset 'mini-places' below .*data-root"):
        prepare("mini-places", tmp_path / "file" / "data", TINY)


# --- readers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_dataset_says_so(tmp_path, name):
    read = {"coco": coco_split, "ade20k": ade20k_split}.get(
        DATASETS[name].kind, classification_split
    )
    with pytest.raises(UserError, match=r"is missing: .* does not exist|has no"):
        read(name, tmp_path, "val")
    with pytest.raises(UserError, match="unknown split 'test'"):
        read(name, tmp_path, "test")


def write_inat(root: Path, **changes) -> None:
    content = {
        "images": [{"id": k, "file_name": f"train_val2018/Aves/{k}/x.jpg"} for k in (7, 5)],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 10},
            {"id": 2, "image_id": 7, "category_id": 9},
        ],
        "categories": [{"id": 10, "name": "ten"}, {"id": 9, "name": "nine"}],
        **changes,
    }
    (root / "inat2018").mkdir(parents=True)
    (root / "inat2018" / "train2018.json").write_text(json.dumps(content))


def test_inat_labels_come_from_the_json_not_the_folders(tmp_path):
    """Folders say 5 and 7, and as text "10" sorts before "9"."""
    write_inat(tmp_path)
    data = read_inat(tmp_path / "inat2018", "train", year=2018)
    assert data.classes == ["nine", "ten"]
    assert [path.parent.name for path in data.paths] == ["5", "7"] and data.labels == [1, 0]


@pytest.mark.parametrize("wrong", [{"image_id": 6}, {"category_id": 3}])
def test_inat_refuses_dangling_annotations(tmp_path, wrong):
    write_inat(tmp_path, annotations=[{"id": 1, "image_id": 5, "category_id": 10, **wrong}])
    with pytest.raises(UserError, match="not listed"):
        read_inat(tmp_path / "inat2018", "train", year=2018)


def test_inat_refuses_broken_json(tmp_path):
    (tmp_path / "inat2018").mkdir()
    path = tmp_path / "inat2018" / "train2018.json"
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_inat(tmp_path / "inat2018", "train", year=2018)
    path.write_text("{}")
    with pytest.raises(UserError, match="lacks one of annotations, categories, images"):
        read_inat(tmp_path / "inat2018", "train", year=2018)


def write_places(root: Path, categories: str, train: str) -> None:
    top = root / "places365"
    (top / "data_256_standard").mkdir(parents=True)
    (top / "categories_places365.txt").write_text(categories)
    (top / "places365_train_standard.txt").write_text(train)


def test_places_names_and_paths(tmp_path):
    write_places(tmp_path, "/f/field/wild 1\n/a/airfield 0\n", "/f/field/wild/1.jpg 1\n")
    data = read_places365(tmp_path / "places365", "train", size="256")
    assert data.classes == ["airfield", "field/wild"] and data.labels == [1]
    assert data.paths == [tmp_path / "places365/data_256_standard/f/field/wild/1.jpg"]


@pytest.mark.parametrize(
    ("categories", "train", "message"),
    [
        ("/a/airfield 0\n", "/a/airfield/1.jpg 1\n", "label 1 of .* is not one of 0 to 0"),
        ("/a/airfield 1\n", "/a/airfield/1.jpg 1\n", "labels of the classes are not 0, 1, 2"),
        ("/a/airfield 0\n", "/a/airfield/1.jpg\n", "line 1, .* is not of the form PATH LABEL"),
    ],
)
def test_places_refuses_wrong_lists(tmp_path, categories, train, message):
    write_places(tmp_path, categories, train)
    with pytest.raises(UserError, match=message):
        read_places365(tmp_path / "places365", "train", size="256")


def test_imagefolder_ranks_sorted_names_and_skips_other_files(tmp_path):
    for name in ("n02/b.JPEG", "n02/a.jpg", "n01/z.png", "n01/notes.txt"):
        path = tmp_path / "imagenet" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    data = read_imagefolder(tmp_path / "imagenet", "train")
    assert data.classes == ["n01", "n02"] and data.labels == [0, 1, 1]
    assert [path.name for path in data.paths] == ["z.png", "a.jpg", "b.JPEG"]
    (tmp_path / "imagenet" / "train" / "n03").mkdir()
    with pytest.raises(UserError, match="n03: class folder holds no image"):
        read_imagefolder(tmp_path / "imagenet", "train")


def test_imagefolder_refuses_a_flat_folder(tmp_path):
    for split in ("train/n01", "val"):
        (tmp_path / "imagenet" / split).mkdir(parents=True)
        (tmp_path / "imagenet" / split / "a.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match="val: holds no class folder; the images must lie in val/<"):
        read_imagefolder(tmp_path / "imagenet", "val")


def test_coco_classes_follow_sorted_ids(tmp_path):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "val2017").mkdir()
    categories = [{"id": 7, "name": "late"}, {"id": 2, "name": "early"}]
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": categories})
    )
    assert read_coco(tmp_path / "coco", "val").classes == ["early", "late"]


def test_ade_names_in_the_official_file(tmp_path):
    top = tmp_path / "ADEChallengeData2016"
    for kind in ("images", "annotations"):
        (top / kind / "validation").mkdir(parents=True)
    (top / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
        "1\t0.1576\t11664\t1172\t1\twall\n"
        "2\t0.1072\t6046\t612\t1\tbuilding, edifice\n"
    )
    data = read_ade20k(tmp_path / "ADEChallengeData2016", "val")
    assert data.classes == ["wall", "building"]
    assert data.palette == [class_colour(1), class_colour(2)]


def test_class_colours_are_distinct():
    colours = [class_colour(index) for index in range(256)]
    assert len(set(colours)) == 256 and colours[0] == (0, 0, 0)
    assert colours[1] == (128, 0, 0) and colours[3] == (128, 128, 0)
