"""One reader of photographs: EXIF, depth and colour of any kind, names and forms of any kind, nothing lost unsaid."""
import io
import os
import struct
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdd_face.data import load_faces
from sdd_face.distributed import rank, world_size
from sdd_face.files import write_rows
from sdd_face.images import read_face, same_form
from sdd_face.pixels import UNREADABLE, upright, why_unknown
from sdd_face.plot import fonts_for, save_figure, show_images

RAMP = np.tile(np.linspace(0, 255, 112).round().astype(np.uint8), (112, 1))


def tiff(path: Path, values: np.ndarray, bits: int, photometric: int) -> Path:
    """Write a plain TIFF by hand."""
    data, (height, width) = values.tobytes(), values.shape
    entries = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
               (277, 3, 1), (278, 4, height), (279, 4, len(data))]
    out = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries))
    for tag, kind, value in entries: out += struct.pack("<HHII", tag, kind, 1, value)
    path.write_bytes(out + struct.pack("<I", 0))
    return path


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_white_is_white_whatever_a_scanner_calls_it(tmp_path, bits, photometric):
    values = RAMP if bits == 8 else RAMP.astype(np.uint16) * 257
    stored = values if photometric else np.iinfo(values.dtype).max - values
    pixels, reason, _ = read_face(tiff(tmp_path / "a.tif", stored, bits, photometric))
    assert not reason
    assert np.abs(np.frombuffer(pixels, np.uint8).reshape(3, 112, 112)[0].astype(int) - RAMP).max() <= 1


def with_exif(content: bytes, kind: str) -> bytes:
    """Put a damaged EXIF into a picture."""
    broken = b"\x00\x08\x00\x02\x01\x12\x00\x03"
    if kind == "PNG":
        at = content.index(b"IDAT") - 4
        chunk = struct.pack(">I", len(broken)) + b"eXIf" + broken + struct.pack(">I", zlib.crc32(b"eXIf" + broken))
        return content[:at] + chunk + content[at:]
    part = b"Exif\0\0" + broken
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part + content[2:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_exif_costs_no_picture(tmp_path, kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    whole, path = buffer.getvalue(), tmp_path / "a"
    path.write_bytes(whole)
    expected = read_face(path)[0]
    path.write_bytes(with_exif(whole, kind))
    assert read_face(path) == (expected, "", False)
    path.write_bytes(with_exif(whole, kind)[:-3000])
    pixels, reason, _ = read_face(path)
    assert reason and not pixels  # cut short, it is still no picture
    with Image.open(path) as image, pytest.raises(UNREADABLE): upright(image)


def people(folder: Path, endings: list[str]) -> Path:
    """Draw a person of so many pictures with these endings, all of them PNG inside."""
    folder.mkdir(parents=True)
    for i, ending in enumerate(endings):
        noise = np.random.default_rng(i).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}{ending}", "PNG")
    return folder


def test_pictures_are_known_by_their_content_and_what_is_none_is_listed(tmp_path):
    ann = people(tmp_path / "Ann", [".png", ".php", ".bin", ".com", ".1", ".aspx", ".html", ".a", "", ".txt"])
    (ann / "notes.txt").write_text("no picture")
    (ann / ".hidden.png").write_bytes((ann / "0.png").read_bytes())
    (ann / "data.xyz").write_bytes(bytes(99))
    assert len(found := load_faces(tmp_path)) == 10
    assert found.skipped == [("Ann/data.xyz", "not an image that Pillow can read")]  # a text says what it is


@pytest.mark.parametrize("typed, stored", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_form_is_the_same_name(tmp_path, typed, stored):
    people(tmp_path / unicodedata.normalize(stored, "Zoë"), [".png"] * 4)
    name = unicodedata.normalize(typed, "Zoë")
    rows = "".join(f"{name}/{i}.png,{i // 2}\n" for i in range(4))
    (tmp_path / "faces.csv").write_text("file,group\n" + rows, encoding="utf-8")
    assert load_faces(tmp_path).groups.tolist() == [0, 0, 1, 1]
    assert same_form(unicodedata.normalize("NFD", "Zoë")) == unicodedata.normalize("NFC", "Zoë")


def test_two_folders_that_look_alike_are_refused(tmp_path):
    for form in ("NFC", "NFD"): (tmp_path / unicodedata.normalize(form, "Zoë")).mkdir()
    if len(list(tmp_path.iterdir())) == 1: pytest.skip("this file system knows one form only")
    with pytest.raises(ValueError, match="are folders of one person"): load_faces(tmp_path)


# Names are any text

@pytest.mark.parametrize("name", [
    "Cash_$$", "A$B_C$d", r"\frac{", "100 %", "#1 & ~x^2_3", "王伟", "김민준", "Ünï", "a\tb", "\udcff raw", "$x$"])
def test_any_name_is_drawn_as_it_is(tmp_path, name, recwarn):
    figure = show_images([torch.zeros(3, 8, 8, dtype=torch.uint8)], [name], bar="plain")
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 500
    assert not [each for each in recwarn if "Glyph" in str(each.message)]
    if name.isprintable(): assert figure.axes[0].get_title() == name


def test_what_no_font_has_is_told_in_one_sentence():
    fonts_for.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert fonts_for("Ann \U0010fffd\U0010fffc")[0] == "DejaVu Sans"  # for private use: nobody draws them
    assert not told or len(told) == 1 and "no font here has" in str(told[0].message)


def test_settings_of_the_user_do_not_reach_a_figure(tmp_path):
    import matplotlib
    with matplotlib.rc_context({"text.usetex": True}):
        figure = show_images([torch.zeros(3, 8, 8, dtype=torch.uint8)], ["100 % of A_B"], bar="signed")
        save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_a_name_of_any_bytes_is_written(tmp_path):
    name = os.fsdecode(b"Zo\xeb")
    write_rows([{"name": name, "value": 1}], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes() == b"name,value\nZo\xeb,1\n"


@pytest.mark.parametrize("variables, expected", [
    ({}, (1, 0)), ({"WORLD_SIZE": "2"}, (1, 0)), ({"WORLD_SIZE": ""}, (1, 0)), ({"RANK": "1"}, (1, 0)),
    ({"WORLD_SIZE": "two", "RANK": "1"}, (1, 0)), ({"WORLD_SIZE": "2", "RANK": ""}, (1, 0)),
    ({"WORLD_SIZE": "0", "RANK": "0"}, (1, 0)), ({"WORLD_SIZE": "2", "RANK": "1"}, (2, 1))])
def test_what_a_launcher_left_behind_is_no_launcher(monkeypatch, variables, expected):
    for name in ("WORLD_SIZE", "RANK"): monkeypatch.delenv(name, raising=False)
    for name, value in variables.items(): monkeypatch.setenv(name, value)
    assert (world_size(), rank()) == expected


@pytest.mark.parametrize(("brand", "package"), [
    ("heic", "pillow-heif"), ("mif1", "pillow-heif"), ("avif", "pillow-avif-plugin")])
def test_a_format_that_needs_a_package_names_it(tmp_path, brand: str, package: str):
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand.encode() + b"\0" * 12)
    assert f"pip install {package}" in why_unknown(path)
    if brand != "avif": assert f"pip install {package}" in read_face(path)[1]
    path.write_bytes(b"a letter, nothing else")
    assert read_face(path)[1] == "not an image that Pillow can read"
