"""FaceScrub's lists and the manifest: what is read, and what is said of rows that cannot be used."""
from dataclasses import replace
from pathlib import Path

import pytest

from sdd_face.facescrub import MANIFEST, Photo, beside_paper, read_manifest, read_metadata, write_manifest

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
needs_real_faces = pytest.mark.skipif(
    not REAL.exists(), reason="real faces and weights (../shared/real) are not here; they are not part of the project")
HEADER = "name\timage_id\tface_id\turl\tbbox\tsha256"
GOOD = ["Ann Lee", "12", "34", "http://example.org/a b.jpg", "10,20,60,70", "ab" * 32]


def write_list(folder: Path, *rows: str | list[str], name: str = "facescrub_actresses.txt") -> Path:
    """Write a list."""
    (folder / name).write_text("\n".join(row if isinstance(row, str) else "\t".join(row) for row in rows))
    return folder


def changed(**columns: str) -> list[str]:
    """Give the good row with some columns changed."""
    values = dict(zip(HEADER.split("\t"), GOOD)) | columns
    return list(values.values())


@pytest.mark.parametrize("rows", [
    [GOOD], [HEADER, GOOD], [HEADER.title(), GOOD, ""], ["\ufeff" + HEADER + "\r", "\t".join(GOOD) + "\r"]])
def test_a_row_is_read_with_or_without_a_header(tmp_path, rows):
    photos, problems = read_metadata(write_list(tmp_path, *rows))
    assert problems == []
    assert photos == [
        Photo("Ann Lee", "female", 12, 34, "http://example.org/a b.jpg", (10, 20, 60, 70), "ab" * 32, "actresses")]
    assert photos[0].key == "Ann_Lee/12_34"


@pytest.mark.parametrize(("name", "sex", "folder"), [
    ("facescrub_actors.txt", "male", "actors"), ("actresses.txt", "female", "actresses"),
    ("athletes.txt", "unknown", "athletes")])
def test_the_name_of_the_list_tells_sex_and_folder(tmp_path, name, sex, folder):
    photo = read_metadata(write_list(tmp_path, GOOD, name=name))[0][0]
    assert (photo.sex, photo.folder) == (sex, folder)


@pytest.mark.parametrize(("row", "sentence"), [
    (GOOD[:4], "4 columns; expected 6: name, image id, face id, url, box, sha256"),
    (["Ann Lee"], "1 column; expected 6"),
    ([*GOOD[:3], GOOD[4], GOOD[3], GOOD[5]], "a box stands where the url should be; are columns swapped?"),
    ([*GOOD[:4], GOOD[5], GOOD[4]], "a sha256 stands where the box should be; are columns swapped?"),
    (changed(bbox="60,20,10,70"), "the box 60,20,10,70 is empty; expected x1 < x2 and y1 < y2"),
    (changed(bbox="10,20,10,70"), "the box 10,20,10,70 is empty"),
    (changed(bbox="10,20,60"), "the box is '10,20,60'; expected x1,y1,x2,y2"),
    (changed(sha256="ab" * 31), f"the sha256 is {'ab' * 31!r}; expected 64 hexadecimal digits"),
    (changed(sha256="xy" * 32), "expected 64 hexadecimal digits"),
    (changed(image_id="twelve"), "the image id is 'twelve'; expected a whole number"),
    (changed(face_id="-1"), "the face id is '-1'; expected a whole number"),
    (changed(face_id="１２"), "expected a whole number"),
    (changed(url="example.org/a.jpg"), "the url is 'example.org/a.jpg'; expected an address such as http://..."),
    (changed(name=""), "the name is ''; expected a person's"),
    (changed(name="../x"), "the name '../x' would leave the folder of the photographs; expected a person's name"),
    (changed(name="/etc"), "would leave the folder"),
    (changed(name="a\\b"), "would leave the folder"),
    (changed(name=".ssh"), "would leave the folder"),
    (changed(name="C:"), "would leave the folder"),
    (changed(name="x" * 300), "would leave the folder"),
    (changed(name="Ann\x00Lee"), "control characters; expected text with tabs"),
    (GOOD, "Ann_Lee/12_34 once more; it stands already in facescrub_actresses.txt, line 1"),
    (changed(name="Ann_Lee", image_id="012"), "Ann_Lee/12_34 once more"),
])
def test_a_damaged_row_is_named_by_file_and_line_and_left_out(tmp_path, row, sentence):
    photos, problems = read_metadata(write_list(tmp_path, GOOD, row))
    assert len(photos) == 1 and len(problems) == 1
    assert problems[0].startswith("facescrub_actresses.txt, line 2: ") and sentence in problems[0], problems[0]


def test_bytes_that_are_no_text_are_a_damaged_row(tmp_path):
    (tmp_path / "actors.txt").write_bytes("\t".join(GOOD).encode() + b"\n\xff\xfe\t\x00\n")
    assert read_metadata(tmp_path)[1] == ["actors.txt, line 2: not a text in UTF-8"]


def test_a_face_may_not_stand_in_both_lists(tmp_path):
    write_list(tmp_path, GOOD)
    photos, problems = read_metadata(write_list(tmp_path, GOOD, name="facescrub_actors.txt"))
    assert len(photos) == 1 and problems == [
        "facescrub_actresses.txt, line 1: Ann_Lee/12_34 once more; it stands already in facescrub_actors.txt, line 1"]


def test_nothing_to_read_is_said_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"): read_metadata(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("Ask the authors for the lists.")
    with pytest.raises(FileNotFoundError, match="no list of FaceScrub; expected facescrub_actors.txt"):
        read_metadata(tmp_path)
    damaged = r"no row of the lists can be used \(2 are damaged\); facescrub_actresses.txt, line 1: 4 columns"
    with pytest.raises(ValueError, match=damaged): read_metadata(write_list(tmp_path, GOOD[:4], GOOD[:5]))


@needs_real_faces
def test_real_lists():
    photos, problems = read_metadata(REAL / "facescrub12")
    assert len(photos) == 3104 and len({photo.name for photo in photos}) == 12
    assert problems == [
        "facescrub_actresses.txt, line 1556: 4 columns; expected 6: name, image id, face id, url, box, sha256"]
    assert sum(photo.sex == "male" for photo in photos) == 1549


PHOTO = Photo(
    "Ann Lee", "female", 12, 34, "http://example.org/a,b\".jpg", (10, 20, 60, 70), "ab" * 32,
    status="dead", detail="gone")


def test_the_manifest_comes_back_sorted(tmp_path):
    here = replace(PHOTO, image_id=5, status="ok", detail="", file="actresses/Ann_Lee/5_34.jpg")
    photos = [PHOTO, here, replace(PHOTO, name="Aba Bo")]
    write_manifest(photos, tmp_path / "manifest.csv")
    assert list(read_manifest(tmp_path / "manifest.csv").values()) == [photos[2], photos[1], photos[0]]
    assert read_manifest(tmp_path / "none.csv") == {}


def test_the_later_row_counts_and_half_a_row_does_not(tmp_path):
    table = tmp_path / "manifest.csv"
    write_manifest([PHOTO], table)
    whole = table.read_text()
    for cut in range(len(whole)):
        table.write_text(whole[:cut])
        assert read_manifest(table) == {}
    write_manifest([replace(PHOTO, status="failed")], table)
    table.write_text(table.read_text() + whole.split("\n")[1] + "\n" + whole.split("\n")[1][:-9])
    assert read_manifest(table) == {PHOTO.key: PHOTO}


@pytest.mark.parametrize("change", [
    {"status": "fine"}, {"file": "../Ann_Lee/12_34.jpg"}, {"file": "/etc/passwd"}, {"name": "../x"},
    {"file": "a/Ann_Lee/9_9.jpg"}])
def test_a_manifest_that_was_tampered_with_leads_nowhere(tmp_path, change):
    write_manifest([replace(PHOTO, **change)], tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv") == {}


def test_another_table_is_no_manifest(tmp_path):
    (tmp_path / "manifest.csv").write_text("file,group\na,1\n")
    with pytest.raises(ValueError, match=f"manifest.csv, line 1: columns file, group; expected {', '.join(MANIFEST)}"):
        read_manifest(tmp_path / "manifest.csv")


def test_beside_the_paper():
    assert beside_paper(12, 1645) == "12 of the paper's 530 people, 1,645 of its 43,148 images"
