"""Bad input gets a clear sentence and nothing is lost: what `load_faces` and `split_faces` promise."""
import csv
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from sdd_face import data
from sdd_face.data import Faces, load_faces, near_duplicates, read_folder, split_faces, split_sizes

REAL = Path(__file__).resolve().parents[2] / "shared" / "real" / "facescrub12" / "aligned"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the FaceScrub faces are not at {REAL}")


def picture(seed: int) -> Image.Image:
    "Smooth noise: no two seeds are near-duplicates."
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((112, 112), Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    "Keep the decoded images out of the user's cache."
    monkeypatch.setenv("SDD_FACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    "Two people with four PNG images each."
    for i in range(8):
        path = tmp_path / "faces" / ("ann", "bob")[i // 4] / f"{i % 4}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    return tmp_path / "faces"


def reason(faces: Faces, file: str) -> str:
    assert file not in faces.files
    return dict(faces.skipped)[file]



# sources

def test_a_folder_at_another_size(folder, tmp_path):
    """Each size has its own cache, and none is made from the pixels of another."""
    large = tmp_path / "large" / "ann"
    large.mkdir(parents=True)
    for i in range(2): picture(i).resize((320, 320), Image.Resampling.BICUBIC).save(large / f"{i}.png")
    usual, at_160, tall = (read_folder(large.parent, size=size) for size in ((112, 112), (160, 160), (112, 96)))
    assert [tuple(each.images.shape) for each in (usual, at_160, tall)] == [
        (2, 3, 112, 112), (2, 3, 160, 160), (2, 3, 112, 96)]
    with Image.open(large / "1.png") as image:
        wanted = np.array(image.resize((160, 160), Image.Resampling.BICUBIC))
    assert np.array_equal(at_160.images[1].permute(1, 2, 0).numpy(), wanted)
    with patch("sdd_face.images.decode_face", side_effect=AssertionError("decoded again")):
        assert torch.equal(read_folder(str(large.parent), size=(160, 160)).images, at_160.images)
        assert torch.equal(read_folder(large.parent).images, usual.images)
    assert at_160.groups.tolist() == usual.groups.tolist() == [0, 1]
    assert torch.equal(load_faces(folder).images, read_folder(folder).images)


def test_folder(folder):
    faces = load_faces(folder)
    assert (faces.names, len(faces), faces.skipped, faces.parts) == (["ann", "bob"], 8, [], None)
    assert faces.images.shape == (8, 3, 112, 112) and faces.images.dtype == torch.uint8
    assert faces.labels.tolist() == [0] * 4 + [1] * 4 and faces.labels.dtype == faces.groups.dtype == torch.long
    assert faces.files[5] == "bob/1.png"
    assert torch.equal(faces.images[5].permute(1, 2, 0), torch.from_numpy(np.array(picture(5))))
    assert len(faces.groups.unique()) == 8
    assert repr(faces) == "Faces(8 images of 2 people, 8 groups, 0 skipped)"


def test_relative_folder_starts_at_the_project(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert len(load_faces("faces")) == 8


def test_drawn_faces():
    faces = load_faces("synthetic", people=3, images_per_person=4, seed=1)
    assert faces.names == ["person_00", "person_01", "person_02"] and faces.files[5] == "person_01/0001"
    assert faces.groups.tolist() == list(range(12)) and faces.parts.shape == (12, 112, 112)
    assert torch.equal(faces[4:8].parts, faces.parts[4:8]) and faces.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert faces.fingerprint == load_faces("synthetic", people=3, images_per_person=4, seed=1).fingerprint
    assert faces.fingerprint != load_faces("synthetic", people=3, images_per_person=4, seed=2).fingerprint


def test_drawn_faces_need_enough_images():
    with pytest.raises(ValueError, match="nobody is left; person_00: has 2 of the 3 images"):
        load_faces(people=1, images_per_person=2)


def test_selecting():
    faces = Faces(torch.zeros(4, 3, 1, 1), torch.tensor([0, 0, 1, 1]), ["ann", "bob"], torch.arange(4), list("abcd"))
    assert faces[::2].files == ["a", "c"] and faces[torch.tensor([3, 0])].files == ["d", "a"]
    assert faces[faces.labels == 1].files == ["c", "d"] and faces[faces.labels == 1].names == faces.names
    assert len(faces[torch.tensor([], dtype=torch.long)]) == 0
    with pytest.raises(TypeError, match=r"faces\[1\]: expected a slice"): faces[1]
    with pytest.raises(IndexError): faces[torch.tensor([4])]


def test_fingerprint_sees_pixels_labels_and_names():
    def faces(pixel=0, label=0, name="ann"):
        images = torch.full((1, 3, 2, 2), pixel, dtype=torch.uint8)
        return Faces(images, torch.tensor([label]), [name], torch.tensor([0]), ["a"])
    assert faces().fingerprint == faces().fingerprint
    assert len({f.fingerprint for f in (faces(), faces(pixel=1), faces(label=1), faces(name="bob"))}) == 4


# people with too few images

def test_nothing_but_empty_people(tmp_path):
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    with pytest.raises(ValueError, match="nobody is left; ann: has 0 of the 3 images"): load_faces(tmp_path / "faces")


def test_a_person_with_one_image_is_left_out_and_listed(folder):
    (folder / "abe").mkdir()
    picture(40).save(folder / "abe" / "0.png")
    before = load_faces(folder, min_images=1)
    faces = load_faces(folder)
    assert reason(faces, "abe") == "has 1 of the 3 images that are needed"
    assert faces.names == ["ann", "bob"] and faces.labels.tolist() == [0] * 4 + [1] * 4
    assert before.names == ["abe", "ann", "bob"] and torch.equal(before.images[1:], faces.images)


def test_nobody_with_enough_images(folder):
    (folder / "ann" / "text.jpg").write_text("Dear Ann")
    with pytest.raises(ValueError, match="nobody is left; ann/text.jpg: not an image .* ann: has 4 of the 5 images"):
        load_faces(folder, min_images=5)


# groups

def test_copies_are_found_within_one_person(folder):
    picture(0).save(folder / "ann" / "copy.jpg", quality=60)
    shutil.copy(folder / "ann" / "1.png", folder / "bob" / "copy.png")
    faces = load_faces(folder)
    group = dict(zip(faces.files, faces.groups.tolist()))
    assert group["ann/copy.jpg"] == group["ann/0.png"] and group["bob/copy.png"] != group["ann/1.png"]
    assert len(set(group.values())) == 9


def test_no_images_have_no_groups():
    nothing = torch.empty(0, 3, 112, 112, dtype=torch.uint8)
    assert near_duplicates(nothing, torch.empty(0, dtype=torch.long)).tolist() == []


def test_faces_csv_decides_and_is_read_each_time(folder):
    picture(0).save(folder / "ann" / "copy.png")
    load_faces(folder)
    table = folder / "faces.csv"
    table.write_text("\ufefffile, group\r\nann/0.png, a\r\nann/1.png, a\r\nbob/0.png, a\r\n", encoding="utf-8")
    faces = load_faces(folder)
    group = dict(zip(faces.files, faces.groups.tolist()))
    assert group["ann/0.png"] == group["ann/1.png"] != group["bob/0.png"]
    assert group["ann/copy.png"] != group["ann/0.png"] and len(set(group.values())) == 8
    table.write_text("group,file\n1,bob/0.png\n1,bob/1.png\n")
    group = dict(zip(load_faces(folder).files, load_faces(folder).groups.tolist()))
    assert group["ann/0.png"] != group["ann/1.png"] and group["bob/0.png"] == group["bob/1.png"]


def test_faces_csv_may_name_a_skipped_file(folder):
    (folder / "ann" / "text.jpg").write_text("Dear Ann")
    (folder / "faces.csv").write_text("file,group\nann/text.jpg,1\nann/0.png,1\n")
    assert len(load_faces(folder)) == 8


@pytest.mark.parametrize("content, message", [
    (b"file,group\nann/0.png,1\nann/9.png,1\n",
     r"faces.csv, line 3: no image 'ann/9.png' in .*faces; expected PERSON/FILE"),
    (b"file,cluster\nann/0.png,1\n", r"faces.csv, line 1: columns \['file', 'cluster'\]; expected file and group"),
    (b"", r"faces.csv, line 1: columns \[\]; expected file and group"),
    (b"file,group\nann/0.png\n", r"faces.csv, line 2: no group for ann/0.png"),
    (b"file,group\nann/0.png,1\nann/0.png,2\n", r"faces.csv, line 3: ann/0.png already has the group 1"),
    (b"file,group\nann/\xff.png,1\n", r"faces.csv: not a table in UTF-8"),
])
def test_a_wrong_faces_csv(folder, content, message):
    (folder / "faces.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message): load_faces(folder)


def found_pairs(faces: Faces) -> list[dict]:
    "Compare, at several numbers of bits, pairs in one group of near-duplicates with those that are known."
    same = (faces.labels[:, None] == faces.labels).triu(1)
    known = (faces.groups[:, None] == faces.groups)[same]
    rows = []
    for bits in (16, 20, 22, 24, 28):
        with patch.object(data, "MOST_BITS", bits): groups = near_duplicates(faces.images, faces.labels)
        alike = (groups[:, None] == groups)[same]
        found, right = int((alike & known).sum()), int(known.sum())
        row = {"bits": bits, "found": found, "known": right, "compared": int(same.sum())}
        rows.append(row | {"recall": f"{found / right:.3f}", "precision": f"{found / int(alike.sum()):.3f}"})
    return rows


@needs_real
def test_the_table_of_near_duplicates_is_what_real_faces_give():
    path = ROOT / "figures/facescrub12/near_duplicates.csv"
    with path.open(newline="") as lines: kept = list(csv.DictReader(lines))
    assert kept == [{name: str(value) for name, value in row.items()} for row in found_pairs(load_faces(REAL))]


@needs_real
def test_near_duplicates_of_real_faces():
    faces = load_faces(REAL)
    found = near_duplicates(faces.images, faces.labels)
    pairs = torch.combinations(torch.arange(len(faces)))
    pairs = pairs[faces.labels[pairs[:, 0]] == faces.labels[pairs[:, 1]]]
    truly, alike = (groups[pairs[:, 0]] == groups[pairs[:, 1]] for groups in (faces.groups, found))
    assert (len(faces), len(pairs), int(truly.sum())) == (1645, 115_010, 197)
    assert (truly & alike).sum() / truly.sum() >= 0.99
    assert (truly & alike).sum() / alike.sum() >= 0.90


# the split

def people_with(group_sizes: dict[str, list[int]]) -> Faces:
    "Faces without pixels: {name: the sizes of the person's groups}."
    names, labels, groups, count = list(group_sizes), [], [], 0
    for label, sizes in enumerate(group_sizes.values()):
        for size in sizes:
            labels += [label] * size
            groups += [count] * size
            count += 1
    files = [f"{names[label]}/{i}" for i, label in enumerate(labels)]
    return Faces(torch.zeros(len(files), 1), torch.tensor(labels), names, torch.tensor(groups), files)


def counts(faces: Faces, seed: int = 0) -> tuple[int, ...]:
    return tuple(len(part) for part in split_faces(faces, seed=seed))


@pytest.mark.parametrize("images", range(3, 210))
def test_single_images_give_exact_counts(images):
    val = (images + 9) // 10
    test = (images - val + 8) // 9
    assert split_sizes(images) == (images - val - test, val, test) == counts(people_with({"ann": [1] * images}))


@pytest.mark.parametrize("seed", range(20))
def test_every_promise_of_the_split(seed):
    rng = np.random.default_rng(seed)
    sizes = {f"p{p}": rng.choice([1, 1, 1, 2, 3, 8, 20], rng.integers(1, 40)).tolist() for p in range(12)}
    faces = people_with(sizes)
    parts = split_faces(faces, seed=seed)
    assert sorted(file for part in parts for file in part.files) == sorted(faces.files)
    assert sum(len(part.groups.unique()) for part in parts) == len(faces.groups.unique())
    for label, groups in enumerate(sizes.values()):
        train, val, test = (int((part.labels == label).sum()) for part in parts)
        wanted = split_sizes(sum(groups))
        assert train >= 1
        if len(groups) == 1: assert (val, test) == (0, 0)
        if len(groups) >= 3: assert val >= 1 and test >= 1
        if sum(groups) >= 3 and groups.count(1) >= wanted[1] + wanted[2]: assert (train, val, test) == wanted


@pytest.mark.parametrize("groups, expected", [
    ([1], (1, 0, 0)), ([1, 1], (1, 0, 1)), ([1, 1, 1], (1, 1, 1)),
    ([50], (50, 0, 0)), ([30, 31], (31, 0, 30)), ([30, 31, 32], (32, 31, 30))])
def test_few_or_large_groups(groups, expected):
    assert counts(people_with({"ann": groups})) == expected


def test_the_seed_decides_and_nobody_else():
    faces = people_with({name: [1, 2, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1] for name in ("ann", "bob", "cem")})
    files = [[part.files for part in split_faces(faces, seed=seed)] for seed in (0, 0, 1)]
    assert files[0] == files[1] != files[2]
    bob = [part.files for part in split_faces(faces[faces.labels == 1], seed=0)]
    assert bob == [[file for file in part if file.startswith("bob")] for part in files[0]]


def test_split_csv(tmp_path):
    faces = people_with({"Ann, Dr.": [1, 2, 1, 1, 5], "bob": [1] * 9, "L\udce9a": [1] * 4})  # the last is not UTF-8
    path = tmp_path / "runs" / "quick" / "split.csv"
    parts = split_faces(faces, seed=3, path=path)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as lines: rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["file", "name", "group", "split"] and [row["file"] for row in rows] == faces.files
    for side, part in zip(("train", "val", "test"), parts):
        chosen = [row for row in rows if row["split"] == side]
        assert [row["file"] for row in chosen] == part.files
        assert [int(row["group"]) for row in chosen] == part.groups.tolist()
        assert [row["name"] for row in chosen] == [part.names[label] for label in part.labels]
    assert [entry.name for entry in path.parent.iterdir()] == ["split.csv"]


def test_split_csv_is_kept_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "split.csv"
    path.write_text("old")

    def fail(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(data.csv, "writer", fail)
    with pytest.raises(OSError, match="No space left"): split_faces(people_with({"ann": [1] * 5}), path=path)
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["split.csv"]


def test_names_of_files_that_are_not_utf8(folder, tmp_path):
    try: picture(60).save(os.fsencode(folder / "ann") + b"/caf\xe9.png")
    except (OSError, ValueError): pytest.skip("this file system takes UTF-8 names only")
    for _ in range(2): faces = load_faces(folder)
    assert len(faces) == 9
    split_faces(faces, path=tmp_path / "split.csv")


