"""Users' own images: folders, lists and tar shards, read by name."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mae_bench.cli import main
from mae_bench.errors import UserError
from tasks.data import (
    absolute,
    check_use,
    classification_split,
    fingerprint,
    get_dataset,
    prepare,
)
from tasks.data.reading import read_image
from tasks.data.sources import INDEX_FOLDER


def picture(number: int) -> bytes:
    """A small picture that tells its number by its colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def number_of(place) -> int:
    return read_image(place).getpixel((0, 0))[0]


def write_files(root: Path, names) -> list[Path]:
    paths = [root / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return paths


def write_shard(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def splits(name: str, root: Path):
    return tuple(classification_split(name, root, split) for split in ("train", "val"))


def test_folder_with_splits_and_classes(tmp_path):
    write_files(tmp_path, ["train/b/2.JPG", "train/a/1.png", "val/b/deep/3.webp", "notes/4.png"])
    train, val = splits(f"imagefolder:{tmp_path}", tmp_path)
    assert train.classes == val.classes == ["a", "b"]
    assert [p.name for p in train.paths] == ["1.png", "2.JPG"] and train.labels == [0, 1]
    assert [p.name for p in val.paths] == ["3.webp"] and val.labels == [1]


def test_links_in_circles_and_hidden_folders_add_nothing(tmp_path):
    write_files(tmp_path, ["train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"])
    write_files(tmp_path, ["train/.ipynb_checkpoints/5.png", "val/b/.cache/6.png"])
    plain = splits(f"imagefolder:{tmp_path}", tmp_path)
    assert [split.classes for split in plain] == [["a", "b"]] * 2
    for name in ("up", "again"):  # two circles have endlessly many ways
        (tmp_path / "train/a" / name).symlink_to("..")
    assert splits(f"imagefolder:{tmp_path}", tmp_path) == plain


def test_lists_from_windows_have_the_same_entries(tmp_path):
    write_files(tmp_path, [f"{number}.png" for number in range(3)])
    lines = [f"{number}.png {number % 2}" for number in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    plain = splits(f"filelist:{tmp_path}/list.txt", tmp_path)
    (tmp_path / "list.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert splits(f"filelist:{tmp_path}/list.txt", tmp_path) == plain


def test_without_a_validation_split_every_50th_is_held_out(tmp_path):
    paths = write_files(tmp_path, [f"{n:03}.png" for n in range(101)])
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("")
    train, val = splits(f"imagefolder:{tmp_path}", tmp_path)
    assert val.paths == [paths[0], paths[50], paths[100]]
    assert sorted([*train.paths, *val.paths]) == paths and train.classes == [""]


def test_file_list_with_and_without_labels(tmp_path):
    write_files(tmp_path / "images", ["a 1.png", "b.png", "c.png"])
    listing = tmp_path / "list.txt"
    listing.write_text(f"# mine\nimages/a 1.png\n\n{tmp_path}/images/b.png\nimages/c.png\n")
    train, val = splits(f"filelist:{listing}", tmp_path)
    assert [p.name for p in (*val.paths, *train.paths)] == ["a 1.png", "b.png", "c.png"]
    listing.write_text("images/a 1.png 10\nimages/b.png\t9\nimages/c.png 10\n")
    train, val = splits(f"filelist:{listing}", tmp_path)
    assert train.classes == ["9", "10"] and (val.labels, train.labels) == ([1], [0, 1])
    assert [number_of(path) for path in train.paths] == [1, 2]


@pytest.mark.parametrize(
    "place", ["", "train-*.tar", "train-{000..001}.tar"], ids=["folder", "pattern", "range"]
)
def test_tar_shards(tmp_path, place):
    """Members anywhere in the shards are read; labels come from `.cls` files."""
    for shard in range(2):
        files = {}
        for number in range(shard * 3, shard * 3 + 3):
            files |= {f"x/{number}.png": picture(number), f"x/{number}.cls": b"%d" % (number % 2)}
            files[f"x/{number}.json"] = b"{}"
        write_shard(tmp_path / "shards" / f"train-{shard:03}.tar", files)
    train, val = splits(f"tar:{tmp_path / 'shards' / place}", tmp_path / "root")
    assert [number_of(path) for path in val.paths] == [0]
    assert [number_of(path) for path in reversed(train.paths)] == [5, 4, 3, 2, 1]
    assert train.labels == [1, 0, 1, 0, 1] and train.classes == ["0", "1"]
    assert str(train.paths[-1]).endswith("train-001.tar/x/5.png")


def test_tar_shards_for_validation_and_classes_by_folder(tmp_path):
    write_shard(tmp_path / "a-train-0.tar", {"cat/0.png": picture(0), "dog/1.png": picture(1)})
    write_shard(tmp_path / "a-val-0.tar", {"dog/2.png": picture(2)})
    train, val = splits(f"tar:{tmp_path}", tmp_path)
    assert (train.labels, val.labels, val.classes) == ([0, 1], [1], ["cat", "dog"])
    assert number_of(val.paths[0]) == 2


def test_the_index_of_shards_is_kept_and_made_anew_when_they_change(tmp_path, monkeypatch):
    shard = write_shard(tmp_path / "0.tar", {f"{n}.png": picture(n) for n in range(3)})
    name = f"tar:{tmp_path}"
    before = classification_split(name, tmp_path / "root", "train")
    assert len(list((tmp_path / "root" / INDEX_FOLDER).iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert classification_split(name, tmp_path / "root", "train") == before
    write_shard(shard, {f"{n}.png": picture(n) for n in range(9)})
    assert len(classification_split(name, tmp_path / "root", "train").paths) == 8
    (tmp_path / "file").write_text("")  # a data root that cannot be written
    assert len(classification_split(name, tmp_path / "file" / "root", "train").paths) == 8


@pytest.mark.parametrize("kind", ["imagefolder", "filelist", "tar"])
def test_fingerprints_follow_names_and_sizes_not_the_place(tmp_path, kind):
    def make(root: Path, *names: str) -> str:
        write_files(root, names)
        (root / "list.txt").write_text("\n".join(names))
        write_shard(root / "0.tar", {name: picture(0) * len(names) for name in names})
        place = {"imagefolder": root, "filelist": root / "list.txt", "tar": root}[kind]
        return fingerprint(f"{kind}:{place}", tmp_path)

    first = make(tmp_path / "a", *(f"{n}.png" for n in range(8)))
    assert first == make(tmp_path / "b", *(f"{n}.png" for n in range(8)))
    assert first != make(tmp_path / "c", *(f"{n}.png" for n in range(30)))


def test_sources_are_datasets(tmp_path):
    write_files(tmp_path, ["0.png", "1.png"])
    name = f"imagefolder:{tmp_path}"
    assert get_dataset(name).spec is None
    prepare(name, tmp_path)
    check_use(name, "pretraining")
    with pytest.raises(UserError, match="is not one for detection"):
        check_use(name, "detection")
    with pytest.raises(UserError, match=r"these are: imagenet, .* imagefolder:DIR, filelist:"):
        check_use("mini-coco", "pretraining")


def test_places_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("imagefolder:images") == f"imagefolder:{tmp_path}/images"
    assert absolute("mini-coco") == "mini-coco"


def truncated(root: Path) -> str:
    shard = write_shard(root / "0.tar", {"0.png": picture(0) * 100})
    shard.write_bytes(shard.read_bytes()[:2000])
    return f"tar:{shard}"


def packed(root: Path) -> str:
    return f"tar:{write_shard(root / '0.tar', {'0.png': picture(0)}, 'w:gz')}"


def with_file(name: str, content: str, kind: str):
    def make(root: Path) -> str:
        (root / name).write_text(content)
        return f"{kind}:{root / name}"

    return make


def only_image(root: Path) -> str:
    write_files(root, ["0.png"])
    return f"imagefolder:{root}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: f"imagefolder:{root}", "the folder holds no image"),
        (lambda root: f"imagefolder:{root}/gone", "there is no such folder"),
        (only_image, "1 images in all and none for train"),
        (lambda root: "imagefolder:", "names no place; give imagefolder:DIR"),
        (lambda root: f"imagefoldr:{root}", "unknown kind of dataset 'imagefoldr'. Did you mean"),
        (lambda root: f"filelist:{root}/gone", "there is no such file"),
        (with_file("l.txt", "# nothing\n", "filelist"), "the list is empty"),
        (with_file("l.txt", "gone.png\n", "filelist"), "none of its 1 files exists"),
        (with_file("l.txt", "l.txt 0\nl.txt -1\n", "filelist"), "line 'l.txt -1' has no label"),
        (lambda root: f"tar:{root}", r"no \*\.tar file is there"),
        (lambda root: f"tar:{root}/{{0..3}}.tar", r"0\.tar does not exist"),
        (with_file("0.tar", "no archive", "tar"), "is not a whole, uncompressed tar archive"),
        (truncated, "is cut off inside 0.png|is not a whole"),
        (packed, "is not a whole, uncompressed tar archive"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        name = make(tmp_path)
        fingerprint(name, tmp_path)
        classification_split(name, tmp_path, "train")


def test_planning_with_a_source_loads_nothing_heavy(tmp_path):
    write_files(tmp_path, ["0.png", "1.png"])
    code = (
        "import sys, pathlib, tasks.data as data;"
        f"data.fingerprint('imagefolder:{tmp_path}', pathlib.Path());"
        "print(sorted({'torch', 'cv2', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_pretrain_takes_a_source(tmp_path, monkeypatch, capsys):
    """By a relative path too; another set is another run; a wrong one is an error of one line."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "own", ["0.png", "1.png"])

    def pretrain(*options: str) -> tuple[int, str]:
        code = main(["pretrain", *options, "--work-dir", str(tmp_path / "work")])
        told = capsys.readouterr()
        return code, told.out + told.err

    code, plan = pretrain("--dataset", "imagefolder:own", "--dry-run")
    assert code == 0 and f"imagefolder:{tmp_path}/own" in plan.replace("\n", "")
    assert plan != pretrain("--dry-run")[1]
    for wrong, message in {
        "imagefolder:gone": "there is no such folder",
        "mini-coco": "'mini-coco' is not one for pretraining",
    }.items():
        code, told = pretrain("--dataset", wrong)
        assert code == 2 and message in told and told.count("\n") == 1
