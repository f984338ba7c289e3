"""Faces cut out of photographs: the map from the template, and what is said of boxes that do not fit."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdd_face.alignment import TEMPLATE, align_face, check_box, crop_box, similarity
from sdd_face.images import LeftOut
from sdd_face.synthetic import draw_faces, make_people

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def face() -> Image.Image:
    """Draw a face."""
    return Image.fromarray(draw_faces(make_people(1, seed=7), images=1, seed=7).images[0].permute(1, 2, 0).numpy())


def place(
    face: Image.Image, degrees: float = 20, scale: float = 2.0, move: complex = 110 + 30j,
) -> tuple[Image.Image, np.ndarray]:
    """Put the face into a photograph of 320 x 340 pixels; give it, and the landmarks: whole numbers are middles."""
    a = scale * np.exp(1j * np.radians(degrees))
    back, b = 1 / a, 0.5 + 0.5j  # from corners to middles
    offset = b - back * (move + b)
    matrix = [back.real, -back.imag, offset.real, back.imag, back.real, offset.imag]
    points = a * (TEMPLATE @ [1, 1j]) + move
    photo = face.transform((320, 340), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="slategray")
    return photo, np.column_stack([points.real, points.imag])


# The map

def test_the_template_is_the_published_one():
    assert json.loads((GOLDEN / "alignment.json").read_text())["template"] == TEMPLATE.tolist()


@pytest.mark.parametrize(("degrees", "scale", "move"), [
    (0, 1, 0), (30, 2.5, 100 + 20j), (-170, 0.4, 50j), (90, 12, -30 + 400j)])
def test_a_known_similarity_is_recovered(degrees, scale, move):
    a = scale * np.exp(1j * np.radians(degrees))
    points = a * (TEMPLATE @ [1, 1j]) + move
    move = complex(move)
    expected = [[a.real, -a.imag, move.real], [a.imag, a.real, move.imag]]
    np.testing.assert_allclose(similarity(np.column_stack([points.real, points.imag])), expected, atol=1e-9)


def test_the_error_is_least_in_the_photographs_pixels():
    landmarks = TEMPLATE * 3 + np.random.default_rng(1).normal(0, 5, (5, 2))
    matrix, homogeneous = similarity(landmarks), np.column_stack([TEMPLATE, np.ones(5)])

    def error(change: complex) -> float:
        turned = matrix.copy()
        turned[:, :2] += [[change.real, -change.imag], [change.imag, change.real]]
        return np.square(homogeneous @ turned.T - landmarks).sum()
    assert all(error(0) < error(change) for change in (1e-3, -1e-3, 1e-3j, -1e-3j))


@pytest.mark.parametrize("landmarks", [np.zeros((4, 2)), np.full((5, 2), np.nan), np.full((5, 2), 7.0)])
def test_points_that_tell_no_scale(landmarks):
    with pytest.raises(ValueError, match="landmarks"): similarity(landmarks)


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1), (20, 2), (-35, 1.7)])
def test_a_drawn_face_comes_back(face, degrees, scale):
    a = scale * np.exp(1j * np.radians(degrees))
    photo, landmarks = place(face, degrees, scale, complex(160, 170) - a * (56 + 56j))
    difference = np.abs(align_face(photo, landmarks)[4:-4, 4:-4].astype(float) - np.asarray(face)[4:-4, 4:-4])
    assert difference.mean() < 1.5 and (degrees or difference.max() <= 1)  # Pillow rounds down


def test_what_lies_beyond_the_photograph_is_black(face):
    crop = align_face(face, TEMPLATE + [60, 0])
    assert crop[:, 53:].max() == 0
    np.testing.assert_allclose(crop[:, :50].astype(int), np.asarray(face)[:, 60:110], atol=1)


def test_grey_and_transparent_photographs(face):
    assert np.array_equal(align_face(face.convert("L"), TEMPLATE)[..., 0], np.asarray(face.convert("L")))
    glass = face.convert("RGBA")
    glass.putalpha(0)
    assert align_face(glass, TEMPLATE).max() == 0 and crop_box(glass, (0, 0, 50, 50)).max() == 0


def test_boxes_are_in_stored_pixels_and_the_crop_is_turned(face, tmp_path):
    upright = Image.new("RGB", (160, 130))
    upright.paste(face, (30, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it to the right to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png", exif=exif)
    with Image.open(tmp_path / "lying.png") as lying:
        assert lying.size == (130, 160)
        assert np.array_equal(crop_box(lying, (10, 160 - 30 - 112, 122, 160 - 30)), np.asarray(face))
        x, y = (TEMPLATE + [30, 10]).T
        assert np.abs(align_face(lying, np.column_stack([y, 159 - x])).astype(float) - np.asarray(face)).max() <= 1


@pytest.mark.parametrize(("box", "sentence"), [
    ((10, 10, 10, 50), "the box 10,10,10,50 is empty; expected x1 < x2 and y1 < y2"),
    ((-1, 10, 50, 50), "the box -1,10,50,50 reaches beyond the photograph of 112 x 112 pixels"),
    ((10, 10, 113, 50), "reaches beyond the photograph"),
])
def test_boxes_that_do_not_fit(face, box, sentence):
    with pytest.raises(ValueError, match=sentence): crop_box(face, box)
    with pytest.raises(LeftOut, match=sentence): check_box(box, face.size)
