"""A folder of photographs becomes a folder of faces: what is cut, what is left out, and what is said of it."""
import csv
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_alignment import place

from sdd_face.alignment import LANDMARKS, TEMPLATE
from sdd_face.crops import align_folder
from sdd_face.data import load_faces
from sdd_face.facescrub import Photo, write_manifest
from sdd_face.landmark_table import read_landmarks
from sdd_face.synthetic import draw_faces, make_people

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
needs_real_faces = pytest.mark.skipif(
    not REAL.exists(), reason="real faces and weights (../shared/real) are not here; they are not part of the project")
COLUMNS = [f"{point}_{axis}" for point in LANDMARKS for axis in "xy"]
BOX = (40, 50, 260, 270)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """Keep the decoded images out of the user's cache."""
    monkeypatch.setenv("SDD_FACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def face() -> Image.Image:
    """Draw a face."""
    return Image.fromarray(draw_faces(make_people(1, seed=7), images=1, seed=7).images[0].permute(1, 2, 0).numpy())


# Tables of landmarks

def write_landmarks(path: Path, *rows: dict, columns: list[str] = COLUMNS) -> Path:
    """Write a table of landmarks."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", *columns, "bbox", "sha256", "group"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(file: str, landmarks: np.ndarray | None = TEMPLATE, **columns: str) -> dict:
    """Give a row of such a table."""
    return {"file": file} | ({} if landmarks is None else dict(zip(COLUMNS, map(str, landmarks.ravel())))) | columns


def test_a_table_of_landmarks(tmp_path):
    ann = row("actors/Ann_Lee/1_2.png", bbox="1,2,3,4", sha256="AB", group="7")
    known = read_landmarks(write_landmarks(tmp_path / "t.csv", ann, row("Bo/3_4.jpg", None)))
    assert list(known) == ["Ann_Lee/1_2", "Bo/3_4"]
    found = known["Ann_Lee/1_2"]
    assert np.array_equal(found.landmarks, TEMPLATE)
    assert (found.box, found.sha256, found.group) == ((1, 2, 3, 4), "ab", "7")
    assert known["Bo/3_4"].landmarks is None and known["Bo/3_4"].box is None


@pytest.mark.parametrize(("rows", "columns", "sentence"), [
    ([], COLUMNS[:-1], "t.csv, line 1: no column right_mouth_y; expected file, left_eye_x, "),
    ([row("a/1.jpg") | {"nose_x": "here"}], COLUMNS, "t.csv, line 2: nose_x is 'here'; expected a number of pixels"),
    ([row("a/1.jpg") | {"nose_x": "inf"}], COLUMNS, "line 2: nose_x is 'inf'"),
    ([row("a/1.jpg") | {"nose_x": ""}], COLUMNS, "line 2: 9 of 10 coordinates; expected all, or none"),
    ([row("a/1.jpg", bbox="1,2,3")], COLUMNS, "line 2: bbox is '1,2,3'; expected x1,y1,x2,y2"),
    ([row("1.jpg")], COLUMNS, "line 2: file is '1.jpg'; expected PERSON/FILE"),
    ([row("../1.jpg")], COLUMNS, "line 2: file is '../1.jpg'; expected PERSON/FILE"),
])
def test_a_wrong_table_of_landmarks(tmp_path, rows, columns, sentence):
    table = write_landmarks(tmp_path / "t.csv", *rows, columns=columns)
    with pytest.raises(ValueError, match=f".*{sentence}.*"): read_landmarks(table)


# A folder

@pytest.fixture
def photos(tmp_path, face) -> tuple[Path, np.ndarray]:
    """Leave three photographs of two people, as a download does, and give their landmarks."""
    photo, landmarks = place(face)
    listed = []
    for i, place_of in enumerate(["actresses/Ann_Lee/1_10.png", "actresses/Ann_Lee/2_20.jpg", "actors/Bo_Ek/3_30.png"]):
        path = tmp_path / "photos" / place_of
        path.parent.mkdir(parents=True, exist_ok=True)
        (photo.convert("L") if i == 2 else photo).save(path, quality=95)
        name, numbers = path.parent.name.replace("_", " "), [int(number) for number in path.stem.split("_")]
        listed.append(Photo(name, "", *numbers, "http://a.example/", BOX, digest(path), status="ok", file=place_of))
    write_manifest(listed, tmp_path / "photos/manifest.csv")
    return tmp_path / "photos", landmarks


def digest(path: Path) -> str:
    """Hash a file."""
    return sha256(path.read_bytes()).hexdigest()


def table_for(photos: Path, landmarks: np.ndarray, **columns: str) -> Path:
    """Write landmarks for the three photographs."""
    files = ["Ann_Lee/1_10.jpg", "Ann_Lee/2_20.jpg", "Bo_Ek/3_30.jpg"]
    return write_landmarks(photos.parent / "landmarks.csv", *[row(file, landmarks, **columns) for file in files])


def statuses(rows: list[dict]) -> dict[str, str]:
    """Give each face's status."""
    return {one["file"]: one["status"] for one in rows}


def nobody(photo: Image.Image, box: tuple | None) -> None:
    """Find no landmarks."""


def test_a_folder_with_a_table(photos, face, tmp_path):
    folder, landmarks = photos
    rows = align_folder(folder, tmp_path / "faces", landmarks=table_for(folder, landmarks, group="4"))
    assert set(statuses(rows).values()) == {"aligned"} and len(rows) == 3
    assert [one["status"] for one in csv.DictReader((tmp_path / "faces/alignment.csv").open())] == ["aligned"] * 3
    faces = load_faces(tmp_path / "faces", min_images=1)
    assert faces.names == ["Ann_Lee", "Bo_Ek"] and faces.skipped == [] and faces.groups.tolist() == [0, 0, 1]
    difference = np.abs(faces.images[0].permute(1, 2, 0).numpy().astype(float) - np.asarray(face))
    assert difference.mean() < 4


def test_a_detector_sees_rgb_and_the_box(photos, tmp_path):
    folder, landmarks = photos
    seen = []

    def detector(photo: Image.Image, *, box: tuple) -> np.ndarray:
        seen.append((photo.mode, photo.size, box))
        return landmarks
    rows = align_folder(folder, tmp_path / "faces", detector=detector)
    assert seen == [("RGB", (320, 340), BOX)] * 3 and set(statuses(rows).values()) == {"aligned"}
    assert not (tmp_path / "faces/faces.csv").exists()


def test_a_missing_detector_is_said_at_once(photos, tmp_path):
    def absent(photo, box): raise ModuleNotFoundError("a package is missing; pip install 'sdd_face[align]'")
    with pytest.raises(ModuleNotFoundError, match="sdd_face\\[align\\]"):
        align_folder(photos[0], tmp_path / "faces", detector=absent)


@pytest.mark.parametrize(("missing", "expected"), [("skip", "no landmarks"), ("box", "box")])
def test_a_face_without_landmarks(photos, tmp_path, missing, expected):
    folder, landmarks = photos
    table = write_landmarks(tmp_path / "t.csv", row("Ann_Lee/1_10.jpg", landmarks), row("Ann_Lee/2_20.jpg", None))
    rows = align_folder(folder, tmp_path / "faces", landmarks=table, missing=missing)
    assert statuses(rows) == {"Ann_Lee/1_10.jpg": "aligned", "Ann_Lee/2_20.jpg": expected, "Bo_Ek/3_30.jpg": expected}
    assert (tmp_path / "faces/Bo_Ek/3_30.jpg").exists() == (missing == "box")


def test_a_face_without_landmarks_and_box(photos, tmp_path):
    (photos[0] / "manifest.csv").unlink()
    rows = align_folder(photos[0], tmp_path / "faces", missing="box", detector=nobody)
    assert {(one["status"], one["detail"]) for one in rows} == {("no landmarks", "no landmarks were found, and no box")}


@pytest.mark.parametrize(("columns", "status", "sentence"), [
    ({"sha256": "0" * 64}, "wrong hash", f"; expected {'0' * 64}"),
    ({"bbox": "50,50,50,90"}, "empty box", "the box 50,50,50,90 is empty"),
    ({"bbox": "50,50,400,400"}, "box outside the photo",
     "the box 50,50,400,400 reaches beyond the photograph of 320 x 340 pixels"),
    ({"nose_x": "1e9"} | {column: "5" for column in COLUMNS}, "no landmarks", "on one spot"),
])
def test_what_does_not_fit_is_said(photos, tmp_path, columns, status, sentence):
    folder, landmarks = photos
    (folder / "manifest.csv").unlink()
    rows = align_folder(folder, tmp_path / "faces", landmarks=table_for(folder, landmarks, **columns))
    assert {one["status"] for one in rows} == {status} and all(sentence in one["detail"] for one in rows), rows
    assert not list((tmp_path / "faces").glob("*/*.jpg"))


def test_broken_and_absent_photographs(photos, tmp_path):
    folder, landmarks = photos
    (folder / "actresses/Ann_Lee/1_10.png").write_bytes(b"a letter")
    (folder / "actresses/Ann_Lee/2_20.jpg").unlink()
    table = table_for(folder, landmarks)
    with table.open("a") as file: file.write("Cy_Roe/9_9.jpg" + "," * 13 + "\n")
    assert statuses(align_folder(folder, tmp_path / "faces", landmarks=table)) == {
        "Ann_Lee/1_10.jpg": "wrong hash", "Ann_Lee/2_20.jpg": "no such photo", "Bo_Ek/3_30.jpg": "aligned",
        "Cy_Roe/9_9.jpg": "no such photo"}
    (folder / "manifest.csv").unlink()
    assert statuses(align_folder(folder, tmp_path / "faces", landmarks=table))["Ann_Lee/1_10.jpg"] == "unreadable"


def test_pixels_whose_white_is_not_known_are_unreadable(photos, tmp_path):
    folder, landmarks = photos
    (folder / "manifest.csv").unlink()
    pixels = np.random.default_rng(0).random((340, 320), np.float32)
    Image.fromarray(pixels).save(folder / "actors/Bo_Ek/3_30.png", "TIFF")
    rows = align_folder(folder, tmp_path / "faces", detector=lambda photo, box: landmarks)
    assert rows[2]["status"] == "unreadable"
    assert rows[2]["detail"] == "floating-point pixels; which value is white is not known"


def test_the_lists_decide_where_they_are_given(photos, tmp_path):
    folder, landmarks = photos
    (folder / "manifest.csv").unlink()
    (tmp_path / "lists").mkdir()
    line = "Ann Lee\t1\t10\thttp://a.example/\t{}\t" + digest(folder / "actresses/Ann_Lee/1_10.png")
    (tmp_path / "lists/actresses.txt").write_text(line.format("0,0,900,900"))
    rows = align_folder(folder, tmp_path / "faces", landmarks=table_for(folder, landmarks), metadata=tmp_path / "lists")
    assert list(statuses(rows).values()) == ["box outside the photo", "aligned", "aligned"]


def test_crops_are_kept_until_something_changes(photos, tmp_path):
    folder, landmarks = photos
    table = table_for(folder, landmarks)
    first = align_folder(folder, tmp_path / "faces", landmarks=table)
    crops = sorted((tmp_path / "faces").glob("*/*.jpg"))
    for crop in crops: os.utime(crop, (1, 1))
    assert align_folder(folder, tmp_path / "faces", landmarks=table) == first
    assert all(crop.stat().st_mtime == 1 for crop in crops)
    table_for(folder, landmarks + 1)
    assert align_folder(folder, tmp_path / "faces", landmarks=table) == first
    assert all(crop.stat().st_mtime > 1 for crop in crops)
    write_landmarks(table, row("Ann_Lee/1_10.jpg", landmarks))
    align_folder(folder, tmp_path / "faces", landmarks=table)
    assert sorted((tmp_path / "faces").glob("*/*.jpg")) == crops[:1]  # the others have no landmarks any more


def test_other_images_are_never_written_over(photos, tmp_path, face):
    folder, landmarks = photos
    mine = tmp_path / "faces/Ann_Lee/1_10.jpg"
    mine.parent.mkdir(parents=True)
    face.save(mine)
    before = mine.read_bytes()
    with pytest.raises(FileExistsError, match="1_10.jpg: an image that was not made here"):
        align_folder(folder, tmp_path / "faces", landmarks=table_for(folder, landmarks))
    assert mine.read_bytes() == before


@pytest.mark.parametrize("out", ["photos", "photos/faces", "."])
def test_crops_do_not_go_among_the_photographs(photos, tmp_path, out):
    with pytest.raises(ValueError, match="not a folder apart from the photographs"):
        align_folder(photos[0], tmp_path / out, detector=nobody)


def test_wrong_options(photos, tmp_path):
    with pytest.raises(ValueError, match="missing is 'drop'; expected skip or box"):
        align_folder(photos[0], tmp_path / "faces", missing="drop")
    with pytest.raises(FileNotFoundError, match="none.csv: no such file; expected a table of landmarks"):
        align_folder(photos[0], tmp_path / "faces", landmarks=tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        align_folder(tmp_path / "none", tmp_path / "faces", detector=nobody)


# Real photographs

@needs_real_faces
def test_agreement_with_published_crops(tmp_path):
    folder = REAL / "facescrub12"
    rows = align_folder(folder / "originals", tmp_path / "faces", landmarks=folder / "faces.csv", metadata=folder)
    counts = {status: sum(one["status"] == status for one in rows) for status in {one["status"] for one in rows}}
    assert counts == {"aligned": 40, "no landmarks": 2, "no such photo": 1605}
    measures = []
    for file in (one["file"] for one in rows if one["status"] == "aligned"):
        ours, theirs = (
            np.asarray(Image.open(crops / file).convert("RGB")).astype(float).ravel()
            for crops in (tmp_path / "faces", folder / "aligned"))
        measures.append((np.abs(ours - theirs).mean(), np.corrcoef(ours, theirs)[0, 1]))
    difference, correlation = np.array(measures).T
    print(f"mean difference {np.median(difference):.2f}, largest {difference.max():.2f}")
    print(f"correlation {np.median(correlation):.4f}, lowest {correlation.min():.4f}")
    assert np.median(difference) < 1.5 and difference.max() < 2
    assert np.median(correlation) > 0.9995 and correlation.min() > 0.998
    groups = {one["file"]: one["group"] for one in csv.DictReader((folder / "aligned/faces.csv").open())}
    assert all(groups[one["file"]] == one["group"] for one in csv.DictReader((tmp_path / "faces/faces.csv").open()))


@needs_real_faces
def test_real_originals_by_their_boxes(tmp_path):
    folder = REAL / "facescrub12"
    rows = align_folder(folder / "originals", tmp_path / "faces", missing="box", detector=nobody, metadata=folder)
    assert [one["status"] for one in rows] == ["box"] * 42
    turns = {Image.open(path).getexif().get(0x0112, 1) for path in (folder / "originals").glob("*/*/*")}
    assert turns == {1}  # none is to be turned


@needs_real_faces
def test_real_faces_are_found_where_no_table_is_given(tmp_path):
    pytest.importorskip("mtcnnruntime", reason="the detector (pip install 'sdd_face[align]') is not installed")
    one = REAL / "facescrub12/originals/actors/Alec_Baldwin/3212_1865.jpg"
    (tmp_path / "photos/Alec_Baldwin").mkdir(parents=True)
    (tmp_path / "photos/Alec_Baldwin/3212_1865.jpg").write_bytes(one.read_bytes())
    rows = align_folder(tmp_path / "photos", tmp_path / "faces")
    assert statuses(rows) == {"Alec_Baldwin/3212_1865.jpg": "aligned"}
