"""People are found by name, in whatever order and number a folder has them; strangers are refused by name."""
from dataclasses import replace

import pytest
import torch
from conftest import noise, untrained

from sdd_face.classes import class_numbers, labels_by_name
from sdd_face.data import Faces
from sdd_face.evaluation import Masking, evaluate
from sdd_face.finetune import Recipe, accuracy, finetune
from sdd_face.methods import attribute
from sdd_face.model import predict
from sdd_face.sdd import explain

KNOWN = ["Ann_Lee", "Bob", "Cy Twombly", "Dée", "王芳"]


@pytest.fixture(scope="module")
def model():
    """Build a network that knows them, untrained."""
    network = untrained(5)
    network.names = KNOWN
    return network


def faces_of(*names: str, said: list[str]) -> Faces:
    """Give noise that shows these people, in a folder that has only them."""
    order = sorted(set(names))
    labels = torch.tensor([order.index(name) for name in said])
    return Faces(noise(len(said)), labels, order, torch.arange(len(said)), [f"{i}" for i in range(len(said))])


@pytest.mark.parametrize("who, number", [
    ("Bob", 1), ("bob", 1), ("Ann Lee", 0), ("cy_twombly", 2), ("Dée", 3), ("王芳", 4)])
def test_a_name_means_a_person(who, number): assert class_numbers(who, KNOWN) == number


def test_numbers_and_lists_stay_what_they_are():
    assert class_numbers(3, KNOWN) == 3 and class_numbers(None, KNOWN) is None
    assert class_numbers(["Bob", 0], KNOWN).tolist() == [1, 0]
    assert class_numbers([["Bob", "Dée"], ["Cy Twombly", "Bob"]], KNOWN).tolist() == [[1, 3], [2, 1]]
    given = torch.tensor([4, 2])
    assert class_numbers(given, KNOWN) is given


@pytest.mark.parametrize("who, message", [
    ("Bop", "'Bop' is nobody whom the network knows, among 5 people; did you mean 'Bob'?"),
    ("Zoroaster", "'Zoroaster' is nobody whom the network knows, among 5 people$"), (["Bob", ""], "'' is nobody")])
def test_an_unknown_name_is_refused_with_the_nearest(model, who, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")): class_numbers(who, KNOWN)
    with pytest.raises(ValueError, match="is nobody"): explain(model, noise(2), target=who)


def test_two_that_differ_in_an_underscore_are_told_by_the_whole_name():
    assert [class_numbers(name, ["a b", "a_b"]) for name in ("a b", "a_b")] == [0, 1]
    with pytest.raises(ValueError, match="nobody"): class_numbers("A B", ["a b", "a_b"])


def test_why_this_person_and_not_that_one(model):
    images = noise(3)
    by_name = explain(model, images, target="Bob", against=["Dée", "Ann_Lee"])
    by_number = explain(model, images, target=1, against=torch.tensor([[3, 0]]).expand(3, -1))
    assert by_name.classes.tolist() == [[1, 3, 0]] * 3 and torch.equal(by_name.sdd.map, by_number.sdd.map)
    each = explain(model, images, target=["Bob", "Dée", "Bob"], against=[["Dée"], ["Bob"], ["王芳"]], batch_size=2)
    assert each.classes.tolist() == [[1, 3], [3, 1], [1, 4]]
    with pytest.raises(ValueError, match="holds the explained class itself"):
        explain(model, images, target="Bob", against=["Bob"])
    maps = attribute(model, images, target="Bob", against=["Dée", "Ann_Lee"], method="sdd")
    assert torch.equal(maps, attribute(model, images, target=1, against=torch.tensor([[3, 0]] * 3), method="sdd"))


def test_what_does_not_fit_the_images_is_refused_in_our_words(model):
    for options in ({"target": [1, 2]}, {"target": 2.5}, {"target": 7}, {"against": [[1], [2]]}):
        for ask in (explain, attribute):
            with pytest.raises(ValueError, match="(target|against) is"): ask(model, noise(3), **options)


def test_a_folder_of_some_of_them_is_scored_by_name(model):
    """The network's second and fifth person, who are the first and second of the folder."""
    said = [KNOWN[i] for i in predict(model, noise(6)).argmax(1).tolist()]
    assert accuracy(model, faces_of(*KNOWN, said=said)) == 1
    assert accuracy(model, faces_of(*said, said=said)) == 1
    few = faces_of("Bob", "王芳", said=["Bob", "王芳", "Bob", "Bob"])
    assert labels_by_name(few.labels, few.names, KNOWN).tolist() == [1, 4, 1, 1]
    found = evaluate(model, few, masking=Masking(draws=1))
    assert found.people.tolist() == [1, 4, 1, 1]
    recipe = Recipe(epochs=200, step_size=200, learning_rate=0.1, layers="head", augmentation="none")
    trained = finetune(model, few, few, recipe=recipe, device="cpu")
    assert accuracy(trained, few) == 1


def test_strangers_are_refused_by_name(model):
    strange = faces_of("Bob", "Eve", said=["Bob", "Eve", "Eve"])
    for ask in (accuracy, evaluate, lambda model, faces: finetune(model, faces, faces[:0], recipe=Recipe(epochs=1))):
        with pytest.raises(ValueError, match="the network does not know Eve; it knows 5 people"): ask(model, strange)
    absent = replace(strange, labels=torch.zeros(3, dtype=torch.long))
    assert labels_by_name(absent.labels, absent.names, KNOWN).tolist() == [1, 1, 1]  # a name alone does no harm
    with pytest.raises(ValueError, match="p0, p1, p2, p3, p4 and 4 others"):
        labels_by_name(torch.arange(9), [f"p{i}" for i in range(9)], KNOWN)
