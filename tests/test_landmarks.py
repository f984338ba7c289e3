"""Five points of a face: on drawn faces, on real ones, and what is said where the detector is missing."""
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.transforms.functional import to_pil_image

from sdd_face import landmarks
from sdd_face.landmarks import find_landmarks
from sdd_face.paint import PARTS
from sdd_face.synthetic import draw_faces, make_people

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
needs_real_faces = pytest.mark.skipif(
    not REAL.exists(), reason="real faces and weights (../shared/real) are not here; they are not part of the project")
POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")


@pytest.fixture
def detector() -> None:
    """Skip a test where the optional detector is not installed."""
    pytest.importorskip("mtcnnruntime", reason="the detector (pip install 'sdd_face[align]') is not installed")


@pytest.fixture(scope="module")
def drawing():
    return draw_faces(make_people(12, seed=5), images=1, seed=5)


def real_faces() -> Iterator[tuple[Image.Image, list[float], np.ndarray]]:
    """Give each real photograph that has landmarks, with its official box and its landmarks (5, 2)."""
    with open(REAL / "facescrub12" / "faces.csv", newline="", encoding="utf-8") as file:
        rows = {f"{row['image_id']}_{row['face_id']}": row for row in csv.DictReader(file)}
    for path in sorted((REAL / "facescrub12" / "originals").glob("*/*/*")):
        if row := rows.get(path.stem):
            landmarks = np.array([[float(row[f"{point}_{axis}"]) for axis in "xy"] for point in POINTS])
            yield Image.open(path), [float(edge) for edge in row["bbox"].split(",")], landmarks


@needs_real_faces
def test_real_faces_are_found_where_they_are(detector):
    errors = []
    for photo, box, expected in real_faces():
        found = find_landmarks(photo, box=box)
        assert found is not None and found.shape == (5, 2), photo.filename
        errors.append(np.linalg.norm(found - expected, axis=1).mean() / np.linalg.norm(expected[1] - expected[0]))
    assert len(errors) == 40
    assert np.median(errors) < 0.04 and np.quantile(errors, 0.9) < 0.06 and max(errors) < 0.15


@needs_real_faces
def test_the_largest_face_is_found_without_a_box(detector):
    for photo, _, expected in list(real_faces())[::5]:
        error = np.linalg.norm(find_landmarks(photo) - expected, axis=1).mean()
        assert error < 0.15 * np.linalg.norm(expected[1] - expected[0]), photo.filename


def test_drawn_eyes_are_found_where_they_were_drawn(detector, drawing):
    errors = []
    for image, parts in zip(drawing.images, drawing.parts):
        rows, columns = (parts == PARTS.index("eyes")).nonzero().double().T
        found = find_landmarks(to_pil_image(image))
        middle = [columns.mean() + 0.5, rows.mean() + 0.5]
        errors.append(np.hypot(*(found[:2].mean(0) - middle)) / np.hypot(*(found[1] - found[0])))
    assert np.median(errors) < 0.05 and max(errors) < 0.35


def test_points_come_in_the_order_that_the_picture_shows(detector, drawing):
    for image in drawing.images:
        photo = to_pil_image(image)
        for seen in photo, ImageOps.mirror(photo):
            left_eye, right_eye, nose, left_mouth, right_mouth = find_landmarks(seen)
            assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
            assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


@pytest.mark.parametrize("size", [80, 112, 400, 1000])
def test_landmarks_are_in_the_pixels_of_a_photo_of_any_size(detector, drawing, size):
    face, left, top = to_pil_image(drawing.images[0]), size // 2, size // 3
    photo = Image.new("RGB", (3 * size, 2 * size), "grey")
    photo.paste(face.resize((size, size)), (left, top))
    expected = find_landmarks(face) * size / 112 + [left, top]
    box = [left + 0.15 * size, top + 0.15 * size, left + 0.85 * size, top + size]
    for found in find_landmarks(photo, box=box), find_landmarks(photo):
        assert np.abs(found - expected).max() < 0.06 * size


def test_a_box_chooses_the_face(detector, drawing):
    photo = Image.new("RGB", (360, 200), "grey")
    photo.paste(to_pil_image(drawing.images[0]).resize((180, 180)), (0, 10))
    photo.paste(to_pil_image(drawing.images[1]), (240, 50))
    assert find_landmarks(photo)[:, 0].max() < 180
    assert find_landmarks(photo, box=(255, 65, 335, 160))[:, 0].min() > 240
    assert find_landmarks(photo, box=(180, 5, 235, 60)) is None


@pytest.mark.parametrize("box", [None, (50, 50, 120, 130)])
def test_no_face_gives_none(detector, box):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    assert find_landmarks(Image.fromarray(noise), box=box) is None
    assert find_landmarks(Image.new("RGB", (300, 200), "white"), box=box) is None


def test_a_photo_too_small_for_a_face_gives_none(detector):
    assert find_landmarks(Image.new("RGB", (3000, 1))) is None
    assert find_landmarks(Image.new("RGB", (1, 1)), box=(0, 0, 1, 1)) is None


def test_a_box_may_reach_over_the_edge(detector, drawing):
    photo = to_pil_image(drawing.images[0])
    assert np.abs(find_landmarks(photo, box=(-5, -5, 117, 117)) - find_landmarks(photo)).max() < 5


@pytest.mark.parametrize("box", [
    (10, 10, 5, 20), (200, 10, 220, 30), (-20, 0, -5, 10), (1, 2, 3), (0, 0, float("nan"), 9)])
def test_a_bad_box_is_named(box):
    with pytest.raises(ValueError, match=re.escape(f"box is {box}; expected x1, y1, x2, y2")):
        find_landmarks(Image.new("RGB", (112, 96)), box=box)


def test_a_missing_detector_is_one_sentence(monkeypatch):
    landmarks._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "mtcnnruntime", None)
    with pytest.raises(ModuleNotFoundError) as caught: find_landmarks(Image.new("RGB", (112, 112)))
    assert str(caught.value) == "landmarks need mtcnn-runtime, which is not installed; pip install 'sdd_face[align]'"


def test_an_error_of_the_detector_itself_is_not_taken_for_no_face(monkeypatch):
    class Broken:
        def detect(self, *_, **__): raise ValueError("broken")

    monkeypatch.setattr(landmarks, "_detector", Broken)
    with pytest.raises(ValueError, match="broken"): find_landmarks(Image.new("RGB", (112, 112)))
