"""Images of every kind, and files that are none: found, decoded, kept, or listed with a reason."""
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdd_face import images
from sdd_face.data import Faces, load_faces
from sdd_face.images import LeftOut, read_image
from sdd_face.pixels import check_pixels

REAL = Path(__file__).resolve().parents[2] / "shared" / "real" / "facescrub12" / "originals"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the FaceScrub faces are not at {REAL}")


def picture(seed: int, size: tuple[int, int] = (112, 112)) -> Image.Image:
    "Smooth noise: no two seeds are near-duplicates."
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    "Keep the decoded images out of the user's cache."
    monkeypatch.setenv("SDD_FACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


def decoded_by(monkeypatch) -> list[str]:
    "Note the name of every file that is decoded from here on."
    names, read = [], images.read_face
    monkeypatch.setattr(images, "read_face", lambda path, size: names.append(path.name) or read(path, size))
    return names


# images of every kind

@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif", "ppm"])
def test_formats(folder, suffix):
    Image.new("RGB", (200, 150), (250, 120, 30)).save(folder / "ann" / f"new.{suffix}")
    faces = load_faces(folder)
    color = faces.images[faces.files.index(f"ann/new.{suffix}")][:, 50, 50]
    assert (color.int() - torch.tensor([250, 120, 30])).abs().max() <= 8


def test_wrong_or_missing_suffix_does_not_matter(folder):
    picture(20).save(folder / "ann" / "new", "PNG")
    picture(21).save(folder / "ann" / "new.jpg", "PNG")
    assert {"ann/new", "ann/new.jpg"} < set(load_faces(folder).files)


@pytest.mark.parametrize("mode, suffix, color", [
    ("1", "png", (255, 255, 255)), ("L", "png", (90, 90, 90)), ("P", "png", (200, 30, 60)), ("P", "gif", (200, 30, 60)),
    ("CMYK", "jpg", (200, 30, 60)), ("CMYK", "tif", (200, 30, 60)), ("YCbCr", "jpg", (200, 30, 60)),
    ("RGBA", "png", (100, 15, 30)), ("LA", "png", (45, 45, 45)), ("RGBA", "webp", (100, 15, 30))])
def test_color_modes(folder, mode, suffix, color):
    fill = {"1": 1, "L": 90, "LA": (90, 128), "RGBA": (200, 30, 60, 128)}.get(mode, (200, 30, 60))
    image = Image.new(mode if mode in ("1", "L", "LA", "RGBA") else "RGB", (120, 120), fill)
    image = image.convert(mode, palette=Image.Palette.ADAPTIVE)
    image.save(folder / "ann" / f"new.{suffix}")
    faces = load_faces(folder)
    read = faces.images[faces.files.index(f"ann/new.{suffix}")].flatten(1)
    assert (read.int() - torch.tensor(color)[:, None]).abs().max() <= 8


def test_transparent_pixels_are_black_and_do_not_bleed(folder):
    image = np.zeros((224, 224, 4), np.uint8)
    image[:, :112] = (255, 255, 255, 0)
    image[:, 112:] = (0, 200, 0, 255)
    Image.fromarray(image).save(folder / "ann" / "new.png")
    palette = Image.new("P", (120, 120), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(folder / "ann" / "palette.png", transparency=1)
    faces = load_faces(folder)
    read = faces.images[faces.files.index("ann/new.png")]
    assert read[:, :, :50].max() == 0 and read[0].max() == 0 and read[1, :, 62:].min() == 200
    assert faces.images[faces.files.index("ann/palette.png")].max() == 0


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_not_clipped(folder, suffix):
    ramp = np.tile(np.linspace(0, 65535, 112).astype(np.uint16), (112, 1))
    Image.fromarray(ramp).save(folder / "ann" / f"new.{suffix}")
    faces = load_faces(folder)
    read = faces.images[faces.files.index(f"ann/new.{suffix}")]
    assert np.array_equal(read.numpy(), np.broadcast_to(np.round(ramp / 257).astype(np.uint8), (3, 112, 112)))


@pytest.mark.parametrize("values", [
    np.full((50, 50), 1e6, np.int32), np.full((50, 50), -5, np.int32), np.full((50, 50), 0.5, np.float32)])
def test_pixels_without_a_known_white_are_skipped(folder, values):
    Image.fromarray(values).save(folder / "ann" / "new.tif")
    assert "which value is white is not known" in reason(load_faces(folder), "ann/new.tif")


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_rotation(folder, orientation, corner, suffix):
    image = np.zeros((160, 240, 3), np.uint8)
    image[:80, :120] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(folder / "ann" / f"new.{suffix}", exif=exif)
    faces = load_faces(folder)
    read = faces.images[faces.files.index(f"ann/new.{suffix}")][0]
    corners = {(y, x): int(read[y, x]) for y in (0, -1) for x in (0, -1)}
    assert corners.pop(corner) > 250 and max(corners.values()) < 5


def test_first_frame_of_an_animation(folder):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "lime", "blue")]
    for suffix in ("gif", "png", "webp"):
        frames[0].save(folder / "ann" / f"new.{suffix}", save_all=True, append_images=frames[1:])
    faces = load_faces(folder)
    for suffix in ("gif", "png", "webp"):
        color = faces.images[faces.files.index(f"ann/new.{suffix}")][:, 50, 50]
        assert (color.int() - torch.tensor([255, 0, 0])).abs().max() <= 5


def test_resizing_is_antialiased_and_squeezes(folder):
    stripes = np.zeros((448, 896, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(folder / "ann" / "stripes.png")
    left = np.zeros((300, 600, 3), np.uint8)
    left[:, :300] = 255
    Image.fromarray(left).save(folder / "ann" / "wide.jpg", quality=95)
    faces = load_faces(folder)
    assert (faces.images[faces.files.index("ann/stripes.png")][:, 5:-5, 5:-5].int() - 128).abs().max() <= 3
    wide = faces.images[faces.files.index("ann/wide.jpg")]
    assert wide[:, :, :53].min() > 240 and wide[:, :, 59:].max() < 15


@needs_real
def test_real_originals_that_are_grey_or_have_alpha():
    for sex in ("actors", "actresses"):
        faces = load_faces(REAL / sex, min_images=1)
        assert len(faces) > 0 and faces.skipped == []


# files that are no images

def test_broken_files_are_listed_and_the_rest_is_read(folder):
    ann = folder / "ann"
    picture(20, size=(300, 300)).save(ann / "truncated.jpg")
    picture(20, size=(300, 300)).save(ann / "truncated.png")
    for path in ann.glob("truncated.*"): path.write_bytes(path.read_bytes()[:-200])
    picture(21).save(ann / "corrupt.png")
    content = bytearray((ann / "corrupt.png").read_bytes())
    content[60:200] = bytes(140)
    (ann / "corrupt.png").write_bytes(content)
    (ann / "empty.jpg").touch()
    (ann / "text.jpg").write_text("Dear Ann")
    Image.new("RGB", (1, 1)).save(ann / "dot.png")
    Image.new("RGB", (300, 15)).save(ann / "thin.png")
    faces = load_faces(folder)
    assert len(faces) == 8 and faces.names == ["ann", "bob"]
    assert reason(faces, "ann/empty.jpg") == "0 bytes; expected an image (JPEG, PNG)"
    assert reason(faces, "ann/text.jpg") == "not an image that Pillow can read"
    assert reason(faces, "ann/dot.png") == "1 x 1 pixels; a face needs 16 x 16 or more"
    assert reason(faces, "ann/thin.png") == "300 x 15 pixels; a face needs 16 x 16 or more"
    assert "truncated" in reason(faces, "ann/truncated.jpg") and "truncated" in reason(faces, "ann/truncated.png")
    assert reason(faces, "ann/corrupt.png") and len(faces.skipped) == 7


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 12_000, 14_000])
def test_a_decompression_bomb_is_listed(folder, side):
    Image.new("1", (side, side)).save(folder / "ann" / "bomb.png")
    assert "pixels" in reason(load_faces(folder), "ann/bomb.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_never_ends_a_run(folder):
    rng = random.Random(0)
    for suffix in ("jpg", "png", "gif", "tif", "webp", "bmp", "ppm", "jp2", "avif", "ico", "tga", "dds", "sgi", "pcx"):
        try: picture(3).save(folder / "ann" / f"whole.{suffix}")
        except (OSError, KeyError, ValueError): continue  # this Pillow was built without the format
        whole = (folder / "ann" / f"whole.{suffix}").read_bytes()
        for i in range(20):
            content = bytearray(whole[: rng.randrange(1, len(whole))] if i % 4 == 0 else whole)
            for _ in range(4): content[rng.randrange(min(len(content), 300))] = rng.randrange(256)
            (folder / "ann" / f"{suffix}-{i}.{suffix}").write_bytes(content)
    faces = load_faces(folder)
    assert len(faces) + len(faces.skipped) == sum(len(list(place.iterdir())) for place in folder.iterdir())
    assert all(why for _, why in faces.skipped)


def test_other_files_are_passed_over_or_listed(folder):
    for file in ("ann/.hidden.png", "ann/notes.txt", "ann/list.csv", ".DS_Store", "readme.txt", ".thumbs/1.png"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"x")
    assert load_faces(folder).skipped == []
    picture(30).save(folder / "stray.png")
    (folder / "ann" / "more").mkdir()
    os.symlink(folder / "nowhere.png", folder / "ann" / "link.png")
    faces = load_faces(folder)
    assert reason(faces, "stray.png") == "not in the folder of a person"
    assert "a folder or a broken link" in reason(faces, "ann/more") and "broken link" in reason(faces, "ann/link.png")
    assert len(faces) == 8


# folders and people

def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; expected a folder of images for each person"):
        load_faces(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(NotADirectoryError, match="0.png: a file; expected"): load_faces(folder / "ann" / "0.png")


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="an empty folder; expected a folder of images for each person"):
        load_faces(tmp_path / "empty")


def test_images_without_folders_of_people(folder):
    with pytest.raises(ValueError, match=r"files such as 0.png lie directly in it; expected .* Ann_Lee/1.jpg"):
        load_faces(folder / "ann")


def test_two_people_whose_names_differ_in_case_only(folder):
    (folder / "Ann").mkdir(exist_ok=True)
    if len(list(folder.iterdir())) == 2: pytest.skip("this file system does not tell upper from lower case")
    with pytest.raises(ValueError, match="Ann and ann differ in upper and lower case only; rename one"):
        load_faces(folder)


# one file

def test_one_image_is_read_as_those_of_a_folder(folder):
    faces = load_faces(folder)
    assert torch.equal(read_image(folder / "bob" / "1.png"), faces.images[faces.files.index("bob/1.png")])


def test_one_file_that_is_no_face(folder):
    (folder / "ann" / "text.jpg").write_text("Dear Ann")
    with pytest.raises(ValueError, match="text.jpg: not an image that Pillow can read"):
        read_image(folder / "ann" / "text.jpg")
    with pytest.raises(FileNotFoundError, match="none.png: no such file"): read_image(folder / "none.png")


def test_too_many_pixels():
    check_pixels((50_000, 1000))
    with pytest.raises(ValueError, match="8000 x 7000 pixels; at most 50,000,000 are read"): check_pixels((8000, 7000))


def test_a_refusal_has_a_status_and_a_reason():
    left = LeftOut("wrong hash", "another picture")
    assert isinstance(left, ValueError) and left.status == "wrong hash"
    assert left.detail == str(left) == "another picture"


# the cache

NO_CACHE = "cannot keep the decoded images here .*set SDD_FACE_CACHE to a folder"


def test_decoded_once(folder, monkeypatch, cache):
    (folder / "ann" / "text.jpg").write_text("Dear Ann")
    cold, names = load_faces(folder), decoded_by(monkeypatch)
    warm = load_faces(folder)
    assert names == [] and warm.fingerprint == cold.fingerprint
    assert (warm.files, warm.skipped) == (cold.files, cold.skipped)
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == ["images.bin", "manifest.json"]


def test_loaded_images_may_be_changed_without_touching_the_cache(folder):
    before = load_faces(folder).fingerprint
    load_faces(folder).images.zero_()
    assert load_faces(folder).fingerprint == before


@pytest.mark.parametrize("change", ["new", "gone", "size", "time", "renamed"])
def test_a_changed_folder_is_read_again(folder, change, monkeypatch):
    load_faces(folder)
    path, status = folder / "bob" / "0.png", (folder / "bob" / "0.png").stat()
    if change == "new": picture(50).save(folder / "bob" / "9.png")
    if change == "gone": path.unlink()
    if change == "size":
        picture(51, size=(90, 90)).save(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    if change == "time": os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    if change == "renamed": path.rename(folder / "bob" / "8.png")
    names = decoded_by(monkeypatch)
    faces = load_faces(folder)
    assert len(names) == len(faces) == 8 + (change == "new") - (change == "gone")


@pytest.mark.parametrize("damage", [
    "pixels cut", "pixels changed", "pixels gone", "manifest cut", "manifest of another kind", "old recipe"])
def test_a_damaged_cache_is_made_again(folder, cache, damage, monkeypatch):
    before = load_faces(folder).fingerprint
    pixels, manifest = next(cache.rglob("images.bin")), next(cache.rglob("manifest.json"))
    content = bytearray(pixels.read_bytes())
    if damage == "pixels cut": pixels.write_bytes(content[:-1])
    if damage == "pixels changed":
        content[1000] ^= 1
        pixels.write_bytes(content)
    if damage == "pixels gone": pixels.unlink()
    if damage == "manifest cut": manifest.write_bytes(manifest.read_bytes()[:-5])
    if damage == "manifest of another kind": manifest.write_text("[]")
    if damage == "old recipe": monkeypatch.setattr(images, "RECIPE", images.RECIPE + 1)
    names = decoded_by(monkeypatch)
    assert load_faces(folder).fingerprint == before and len(names) == 8


def test_the_data_folder_is_never_written_to(folder):
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    load_faces(folder)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


def test_a_file_that_the_machine_cannot_read_is_tried_again(folder, monkeypatch):
    decode = images.decode_face

    def refuse(path, size):
        if path.name == "0.png": raise PermissionError(13, "Permission denied", str(path))
        return decode(path)
    with monkeypatch.context() as patch:
        patch.setattr(images, "decode_face", refuse)
        assert reason(load_faces(folder), "ann/0.png") == "Permission denied"
    assert len(load_faces(folder)) == 8


def test_a_cache_folder_that_cannot_be_made(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SDD_FACE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match=NO_CACHE): load_faces(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_folder(folder, cache):
    cache.mkdir(mode=0o500)
    with pytest.raises(OSError, match=NO_CACHE): load_faces(folder)


def test_a_full_disk(folder, cache):
    resource = pytest.importorskip("resource", reason="file size limits are a Unix thing")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=NO_CACHE): load_faces(folder)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert len(load_faces(folder)) == 8


# The layout that programs leave which fetch FaceScrub

@pytest.fixture
def sections(tmp_path) -> Path:
    "Four people with three PNG images each, in the folders that such programs leave."
    places = ["actors/Bo_Ek", "actresses/faces/Ada_Lee", "Cy_Roe", "actors/Di_Fox"]
    for i in range(12):
        path = tmp_path / "photos" / places[i // 3] / f"{i % 3}_1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    for table in ("manifest.csv", "alignment.csv", "actors/notes.txt"):
        (tmp_path / "photos" / table).write_text("file,status\n")
    return tmp_path / "photos"


def test_actors_and_actresses(sections):
    faces = load_faces(sections)
    assert faces.names == ["Ada_Lee", "Bo_Ek", "Cy_Roe", "Di_Fox"] and faces.skipped == []
    assert [faces.names[label] for label in faces.labels.tolist()] == [file.split("/")[-2] for file in faces.files]
    assert "actresses/faces/Ada_Lee/0_1.png" in faces.files and "Cy_Roe/2_1.png" in faces.files
    assert np.array_equal(faces.images[faces.files.index("actors/Bo_Ek/1_1.png")].permute(1, 2, 0), picture(1))


def test_groups_are_named_from_the_top(sections):
    (sections / "faces.csv").write_text("file,group\nactors/Bo_Ek/0_1.png,a\nactors/Bo_Ek/2_1.png,a\n")
    groups = dict(zip((faces := load_faces(sections)).files, faces.groups.tolist()))
    assert groups["actors/Bo_Ek/0_1.png"] == groups["actors/Bo_Ek/2_1.png"] and len(set(groups.values())) == 11


def test_one_person_in_two_places(sections):
    (sections / "actresses/faces/Bo_Ek").mkdir()
    with pytest.raises(ValueError, match="actors/Bo_Ek and actresses/faces/Bo_Ek are folders of one person; keep one"):
        load_faces(sections)


def test_a_stray_image_among_the_actors_is_listed(sections):
    (sections / "actors/stray.png").write_bytes(b"x")
    assert load_faces(sections).skipped == [("actors/stray.png", "not in the folder of a person")]


def test_a_person_may_be_called_actors(sections):
    assert load_faces(sections / "actors").names == ["Bo_Ek", "Di_Fox"]
    people = sections.parent / "people"
    people.mkdir()
    (sections / "actors/Bo_Ek").rename(people / "actors")
    assert load_faces(people).files == [f"actors/{i}_1.png" for i in range(3)]
