"""Numbers that make no sense are refused in a sentence, and what is around does not change those that come out."""
from functools import partial

import numpy as np
import pytest
import torch

from sdd_face.cam import class_activation_maps
from sdd_face.classes import compared_classes
from sdd_face.controls import blind_maps
from sdd_face.data import load_faces
from sdd_face.evaluation import Masking, evaluate
from sdd_face.masks import fill_for, uniform_numbers
from sdd_face.methods import attribute
from sdd_face.model import load_recognizer, predict
from sdd_face.passes import default_float32
from sdd_face.sdd import explain, sdd
from sdd_face.synthetic import draw_faces, make_people

CAMS = torch.randn(2, 5, 7, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return load_recognizer("packaged")


@pytest.fixture(scope="module")
def faces():
    return load_faces("synthetic", people=4, images_per_person=3, seed=1000)


@pytest.mark.parametrize("option", ["alpha", "minimum_scale"])
@pytest.mark.parametrize("value", ["nan", float("nan"), "inf", float("-inf"), -1, -1e-9, 1e39, "much", None, [1]])
def test_numbers_that_are_none_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is .*; expected .* or a number from 0 to"):
        sdd(CAMS, **{option: value})


@pytest.mark.parametrize("options, message", [
    ({"size": (0, 7)}, "size is"), ({"size": 112}, "size is"), ({"size": (7.0, 7.0)}, "size is"),
    ({"size": "112"}, "size is"), ({"target": 0.5}, "target is"), ({"target": torch.tensor([0.0, 1.0])}, "target is"),
    ({"target": "Ann"}, "target is 'Ann'"), ({"target": [0, 1, 2]}, "target is"),
    ({"target": True}, "target is"),
    ({"target": 5}, "target is 5; the maps are 0 to 4"),
    ({"members": torch.ones(3, 5)}, "members are"), ({"order": None}, "order is None"),
    ({"prepare": 3}, "prepare is 3")])
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message): sdd(CAMS, **options)


@pytest.mark.parametrize("dtype, largest", [
    (torch.float32, 1e38), (torch.bfloat16, 1e38), (torch.float16, 6e4), (torch.float64, 1e140), (torch.float32, 1e-44),
    (torch.float64, 1e-300)])
@pytest.mark.parametrize("options", [
    {}, {"prepare": "raw"}, {"prepare": "relu"}, {"order": "cams"}, {"order": "map"}, {"alpha": "fixed_point"},
    {"alpha": 1e6}, {"minimum_scale": 1e6}, {"prepare": "raw", "minimum_scale": 1e6, "alpha": "fixed_point"}])
def test_maps_of_any_size_give_finite_ones_up_to_one(dtype, largest, options):
    found = sdd((CAMS.clamp(-1, 1).double() * largest).to(dtype), **options)
    for values in vars(found).values(): assert values.isfinite().all()
    assert found.map.min() >= 0 and found.map.max() <= 1


def test_the_size_of_maps_does_not_matter_where_each_is_stretched():
    huge = CAMS / CAMS.abs().max() * 3e38
    torch.testing.assert_close(sdd(huge).map, sdd(CAMS.double()).map, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cams reach .*e.300; expected up to 1e150"): sdd(CAMS.double() * 1e300)


def test_arrays_and_lists_are_taken_for_maps_and_weights():
    assert torch.equal(sdd(CAMS.numpy()).map, sdd(CAMS).map)
    f, w = np.ones((1, 2, 7, 7), np.float32), np.ones((3, 2), np.float32)
    assert class_activation_maps(f, w).shape == (1, 3, 7, 7)


@pytest.mark.parametrize("weights", [(2, 3, 2), (3, 3), (2,), (5, 3, 2, 7, 7), (3, 2, 6, 7)])
def test_features_and_weights_that_differ_are_refused(weights):
    with pytest.raises(ValueError, match="features .* and weights .*; expected"):
        class_activation_maps(torch.ones(1, 2, 7, 7), torch.ones(weights))
    assert class_activation_maps(torch.ones(4, 2, 7, 7), torch.ones(1, 3, 2)).shape == (4, 3, 7, 7)


@pytest.mark.parametrize("size", [0, -1, 2.5, "8", True])
def test_a_batch_size_that_is_none_is_refused(model, faces, size):
    occlusion = partial(attribute, method="occlusion")
    for ask in (explain, predict, type(model).embed, attribute, occlusion):
        with pytest.raises(ValueError, match="batch_size is"): ask(model, faces.images[:2], batch_size=size)
    with pytest.raises(ValueError, match="batch_size is"): evaluate(model, faces, batch_size=size)


@pytest.mark.parametrize("top_k", ["5", 2.5, 2.0, None, True, 0, -1, 301, float("nan")])
def test_a_number_of_people_that_is_none_is_refused(model, faces, top_k):
    with pytest.raises(ValueError, match="top_k is"): explain(model, faces.images[:1], top_k=top_k)
    with pytest.raises(ValueError, match="top_k is"): compared_classes(torch.zeros(1, 300), top_k=top_k)
    assert explain(model, faces.images[:1], top_k=np.int64(3)).classes.shape == (1, 3)


@pytest.mark.parametrize("target", [torch.tensor([0.5, 1]), 1.0, [0.0, 1.0], {}, [None, None], object()])
def test_a_target_that_is_none_is_refused(model, faces, target):
    message = "target is|expected classes or names"
    with pytest.raises(ValueError, match=message): explain(model, faces.images[:2], target=target)


def test_a_default_type_that_a_script_has_set_changes_nothing(model, faces):
    def numbers() -> dict[str, torch.Tensor]:
        fresh = load_recognizer("packaged", ["Ann", "Bob"], seed=3)
        found = evaluate(model, faces, {"sdd": None, "disc": blind_maps(len(faces))["disc"]}, masking=Masking(draws=1))
        return {
            "people": make_people(3, seed=5)["skin_tone"],
            "faces": draw_faces(make_people(3), images=1, seed=7).images,
            "head": fresh.head.classifier.weight, "sdd": explain(model, faces.images[:2]).sdd.map,
            "rise": attribute(model, faces.images[:1], method="rise", masks=8),
            "chance": uniform_numbers(2, "map", 1, (9, 9)),
            "masked": found.masked_confidence["deletion", "disc"],
            "fill": fill_for(model, faces.images[:1], fill="mean")}

    torch.manual_seed(0)
    expected = numbers()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        found = numbers()
        with default_float32(): assert torch.ones(1).dtype == torch.float32
        assert torch.ones(1).dtype == torch.float64  # the script's own is as it was
    finally: torch.set_default_dtype(torch.float32)
    for name, value in expected.items(): torch.testing.assert_close(found[name], value, msg=name, rtol=0, atol=0)
