"""An explanation becomes numbers, arrays, a picture and a page, and all of them say the same."""
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import noise, untrained
from PIL import Image
from safetensors.torch import load_file

from sdd_face.explanation import Explanation, plot_explanation
from sdd_face.plot import percent, save_figure
from sdd_face.sdd import explain, explain_features


@pytest.fixture(scope="module")
def why() -> Explanation:
    """Explain three images."""
    return explain(untrained(8), noise(3))


def test_the_numbers_are_told_in_full(why):
    faces = json.loads(json.dumps(why.to_dict()))["faces"]
    assert len(faces) == len(why) == 3
    low = why.sdd.map.amin((1, 2), keepdim=True)
    stretched = (why.sdd.map - low) / (1 - low)
    for i, face in enumerate(faces):
        people = face["people"]
        assert [each["class"] for each in people] == why.classes[i].tolist()
        assert [each["name"] for each in people] == [f"p{label}" for label in why.classes[i]]
        assert torch.equal(torch.tensor([each["probability"] for each in people]), why.probabilities[i])
        assert (face["F"], face["alpha"]) == (why.sdd.scale[i].item(), why.sdd.alpha[i].item())
        assert face["highlighted"] == pytest.approx(float((stretched[i] >= 0.5).float().mean()), abs=1e-6)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_the_arrays_come_back(why, tmp_path: Path, ending: str):
    why.save(tmp_path / f"why.{ending}")
    kept = np.load(tmp_path / "why.npz") if ending == "npz" else load_file(tmp_path / "why.safetensors")
    assert set(kept) == {"classes", "probabilities", "cams", "members", "map", "divergence", "scale", "alpha"}
    assert np.array_equal(kept["map"], why.sdd.map) and np.array_equal(kept["cams"], why.cams)


def test_json_and_pictures_follow_the_ending(why, tmp_path: Path):
    why.save(tmp_path / "why.json")
    assert json.loads((tmp_path / "why.json").read_text()) == why.to_dict()
    explain(untrained(8), noise(1)).save(tmp_path / "why.png")
    with Image.open(tmp_path / "why.png") as picture: assert picture.width > picture.height


@pytest.mark.parametrize(("name", "message"), [
    ("why.docx", "why.docx: its ending says nothing that can be written; expected one of .json, .npz"),
    ("why", "why: its ending says nothing"),
    ("why.png", "a picture holds one face, this explanation 3")])
def test_what_cannot_be_written_is_refused(why, tmp_path: Path, name: str, message: str):
    with pytest.raises(ValueError, match=message): why.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_notebook_shows_picture_people_and_factors(why):
    before = plt.get_fignums()
    page = why._repr_html_()
    assert plt.get_fignums() == before  # no picture is kept in memory
    assert page.count("<img") == 3 and page.count('alt="Class activation maps') == 3
    assert f"F = {why.sdd.scale[0]:.2f}, alpha = {why.sdd.alpha[0]:.3f}" in page
    assert f"<td>p{why.classes[0, 0]}</td><td>{why.probabilities[0, 0]:.4f}</td>" in page


def test_names_cannot_change_the_page():
    model = untrained(3)
    model.names = ["<b>&\"", "'<script>'", "c"]
    page = explain(model, noise(1), top_k=2)._repr_html_()
    assert "<script>" not in page and "<b>" not in page


def test_features_alone_have_no_picture(tmp_path: Path):
    model = untrained(4)
    with torch.no_grad():
        features = model.features(model.preprocess(noise(1)))
        bare = explain_features(model, features, model.head(features), top_k=2)
    with pytest.raises(ValueError, match="pass images"): plot_explanation(bare)
    assert bare._repr_html_() == "<p>1 more</p>"


def test_text_stays_text_in_svg_and_pdf(why, tmp_path: Path):
    figure = plot_explanation(why)
    save_figure(figure, tmp_path / "why.svg")
    save_figure(figure, tmp_path / "why.pdf", dpi=300)
    assert f"CAM p{why.classes[0, 0]}" in re.sub(r"<[^>]*>", "", (tmp_path / "why.svg").read_text())
    written = (tmp_path / "why.pdf").read_bytes()
    assert b"/FontFile2" in written and b"/Type3" not in written  # TrueType


def test_more_dots_make_a_larger_picture(why, tmp_path: Path):
    figure = plot_explanation(why)
    for dpi in (50, 100): save_figure(figure, tmp_path / f"{dpi}.png", dpi=dpi)
    with Image.open(tmp_path / "50.png") as small, Image.open(tmp_path / "100.png") as large:
        assert large.width == pytest.approx(2 * small.width, abs=3)


@pytest.mark.parametrize(("share", "said"), [
    (1.0, ">99.9%"), (0.9996, ">99.9%"), (0.9994, "99.9%"), (0.5, "50.0%"), (0.0006, "0.1%"), (0.0004, "<0.1%"),
    (0.0, "0.0%")])
def test_nothing_is_rounded_to_certainty(share: float, said: str):
    assert percent(share) == said
