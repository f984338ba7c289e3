"""Faces of a photograph are found, numbered and aligned; a crop stays as it is, and what shows no face is refused."""
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import untrained
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from sdd_face.inputs import read_faces
from sdd_face.methods import attribute
from sdd_face.photos import find_portrait, numbered
from sdd_face.sdd import explain
from sdd_face.synthetic import draw_faces, make_people

pytest.importorskip("mtcnnruntime", reason="the extra align is not installed")


@pytest.fixture(scope="module")
def drawing() -> torch.Tensor:
    """Draw two faces."""
    return draw_faces(make_people(8, seed=3), images=1, seed=3).images[:2]


@pytest.fixture(scope="module")
def scene(drawing) -> Image.Image:
    """Put both into one picture, the first larger."""
    photo = Image.new("RGB", (420, 240), "grey")
    photo.paste(to_pil_image(drawing[0]).resize((200, 200)), (20, 20))
    photo.paste(to_pil_image(drawing[1]), (280, 80))
    return photo


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Compare the middles of two faces."""
    return float((a.float() - b.float())[:, 20:92, 20:92].abs().mean())


def test_the_largest_is_first_and_each_can_be_chosen(scene, drawing):
    first, second = (find_portrait(scene, face=number) for number in (1, 2))
    assert len(first.boxes) == 2 and first.aligned and second.aligned
    assert first.box[2] < 230 < second.box[0]
    assert (first.landmarks[:, 0] < 230).all() and (second.landmarks[:, 0] > 270).all()
    assert difference(first.pixels, drawing[0]) < difference(first.pixels, drawing[1])
    assert difference(second.pixels, drawing[1]) < difference(second.pixels, drawing[0])


def test_a_photograph_lying_on_its_side_is_turned(scene, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png", exif=exif)
    scene.save(tmp_path / "upright.png")
    lying, upright = (read_faces(tmp_path / f"{name}.png", align=True) for name in ("lying", "upright"))
    assert torch.equal(lying, upright)


def test_a_crop_stays_as_it_is(drawing):
    portrait = find_portrait(to_pil_image(drawing[0]))
    assert not portrait.aligned and torch.equal(portrait.pixels, drawing[0])


def test_the_template_grows_with_the_size(scene):
    small, large = (find_portrait(scene, size=(side, side)).pixels for side in (112, 224))
    halved = torch.nn.functional.avg_pool2d(large[None].float(), 2)[0]
    assert large.shape == (3, 224, 224) and float((halved - small).abs().mean()) < 4


def test_every_form_can_be_a_photograph(scene, tmp_path: Path):
    scene.save(tmp_path / "scene.png")
    pixels = np.asarray(scene)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    expected = find_portrait(scene).pixels[None]
    for form in (scene, tmp_path / "scene.png", str(tmp_path / "scene.png"), pixels, tensor, tensor[None], [scene]):
        assert torch.equal(read_faces(form, align=True), expected)
    assert torch.equal(read_faces(tensor / 255, align=True), expected)


def test_all_functions_align(scene):
    model, face = untrained(4), find_portrait(scene).pixels[None]
    assert torch.equal(explain(model, scene, align=True, top_k=3).sdd.map, explain(model, face, top_k=3).sdd.map)
    assert torch.equal(attribute(model, scene, method="cam", align=True), attribute(model, face, method="cam"))
    assert torch.equal(model.embed(scene, align=True), model.embed(face))


def test_what_shows_no_such_face_is_refused(scene):
    with pytest.raises(ValueError, match="no face was found; a crop of an aligned face needs no search"):
        find_portrait(Image.new("RGB", (300, 300), "green"))
    with pytest.raises(ValueError, match="^scene.png: face is 3, but 2 faces were found; expected 1 to 2"):
        find_portrait(scene, face=3, name="scene.png")


def test_numbers_stand_in_the_picture(scene):
    portrait = find_portrait(scene, face=2)
    picture = numbered(scene, portrait)
    changed = (picture != torch.from_numpy(np.asarray(scene).copy()).permute(2, 0, 1)).any(0)
    for box in portrait.boxes.round().astype(int):
        top = changed[box[1], box[0] : box[2]]
        assert top.float().mean() > 0.9  # the box's upper edge


def test_real_photographs_are_found_and_crops_are_left_alone():
    real = Path(__file__).parents[2] / "shared/real/facescrub12"
    if not real.is_dir(): pytest.skip("needs real faces beside the checkout, in ../shared/real")
    crops = sorted((real / "aligned").rglob("*.jpg"))[::40]
    kept = [not find_portrait(Image.open(path)).aligned for path in crops]
    assert len(kept) > 30 and np.mean(kept) > 0.95
    photos = [path for path in sorted((real / "originals").rglob("*.jpg"))[:12]]
    assert all(find_portrait(Image.open(path)).aligned for path in photos)
