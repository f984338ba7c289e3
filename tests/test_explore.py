"""The explorer without a browser: what is computed again, what is refused, what a page may do."""
import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("anywidget", reason="the extra `explore` is not installed")

from sdd_face import gallery
from sdd_face.desk import CONTROLS, Desk, control
from sdd_face.explore import PANELS, Explorer, open_page
from sdd_face.face_panel import FacePanel, family
from sdd_face.gallery import attended, present
from sdd_face.look_panel import LookPanel
from sdd_face.mask_panel import MaskPanel, try_masks
from sdd_face.painter import to_text
from sdd_face.subject import Choice, Subject, from_json, from_query, open_subject, to_query


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Open the packaged network and its people."""
    return open_subject()


PASSES = {  # part of the choice -> another value, and the forward passes that drawing it again takes
    "alpha": (0.5, 0), "minimum_scale": (0.0, 0), "prepare": ("relu", 0), "order": ("cams", 0), "cut": (0.4, 0),
    "colors": ("paper", 0), "rival": ("person_09", 0), "target": ("person_02", 0), "top_k": (3, 0),
    "moment": (2, 1), "person": (5, 1), "traits": ({"jaw": 0.2}, 1)}


@pytest.mark.parametrize("name", PASSES)
def test_a_change_makes_no_more_passes_than_it_needs(subject: Subject, name: str):
    value, passes = PASSES[name]
    panel = LookPanel(Desk(subject))
    before, shown = subject.passes, panel.maps.pictures
    panel.desk.change(**{name: value})
    assert subject.passes - before == passes and not panel.desk.said
    assert panel.maps.pictures != shown or name == "rival"


def test_every_control_moves_the_choice_and_follows_it(subject: Subject):
    desk = Desk(subject)
    made = {name: control(desk, name) for name in CONTROLS}
    others = {name: value for name, (value, _) in PASSES.items() if name != "traits"} | {"fill": "blur", "part": "nose"}
    assert others.keys() == made.keys()
    for name, value in others.items():
        made[name].value = value
        assert getattr(desk.choice, name) == value
    desk.choice = Choice()
    assert {name: each.value for name, each in made.items()} == {name: getattr(Choice(), name) for name in made}


def test_a_painted_mask_of_everything_that_matters_beats_a_corner(subject: Subject):
    look, corner = subject.look(Choice()), torch.zeros(112, 112, dtype=torch.bool)
    corner[:12, :12] = True
    face = torch.zeros(112, 112, dtype=torch.bool)
    face[20:100, 20:92] = True
    whole, small = (try_masks(subject, Choice(), mask) for mask in (face, corner))
    assert whole.drop(0, "yours") > 50 > small.drop(0, "yours") and whole.drop(1, "yours") < small.drop(1, "yours")
    assert whole.person == look.why.names[int(look.why.classes[0, 0])]
    assert all((mask.sum() == face.sum()) for mask in whole.masks)


def test_only_the_panel_that_is_looked_at_is_drawn(subject: Subject):
    desk = Desk(subject)
    panels = [LookPanel(desk), MaskPanel(desk), FacePanel(desk)]
    for panel in panels[1:]: panel.shown = False
    rested = [panel.children for panel in panels[1:]], panels[1].table.value, panels[2].words.value
    desk.change(person=9)
    assert ([panel.children for panel in panels[1:]], panels[1].table.value, panels[2].words.value) == rested
    panels[1].shown = True
    assert panels[1].table.value != rested[1]


def test_opening_a_panel_changes_no_choice_but_the_first_mask():
    explorer = Explorer()
    for number in range(len(PANELS)): explorer.turn_to(number)
    assert replace(explorer.desk.choice, mask="") == Choice()


def test_relatives_are_a_family(subject: Subject):
    assert subject.relatives == 4
    for who in (0, 3, 298): assert {each // 4 for each in family(subject, who)} == {who // 4}


def test_a_network_that_is_not_offered_is_not_opened(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(ValueError, match="expected packaged"): Explorer(Choice(network=str(tmp_path / "secret")))
    shown = []
    monkeypatch.setattr("sdd_face.explore.display", shown.append)
    monkeypatch.setenv("QUERY_STRING", "network=" + json.dumps(str(tmp_path / "secret")))
    open_page(networks=("packaged",))
    assert "asks for what there is not" in shown[0].desk.said and shown[0].desk.choice == Choice()


def test_the_address_brings_the_page_back(monkeypatch: pytest.MonkeyPatch):
    mask = torch.zeros(112, 112, dtype=torch.bool)
    mask[5:9, 70:80] = True
    choice = Choice(person=11, alpha=0.3, traits={"jaw": 0.25}, methods=["cam"], mask=to_text(mask))
    shown = []
    monkeypatch.setattr("sdd_face.explore.display", shown.append)
    monkeypatch.setenv("QUERY_STRING", to_query(choice))
    open_page()
    assert shown[0].desk.choice == choice and from_query(to_query(choice)) == choice


@pytest.mark.parametrize("text", [
    '{"mask": 3}', '{"traits": []}', '{"traits": {"jaw": NaN}}', '{"methods": ["magic"]}', '{"methods": "cam"}',
    '{"alpha": []}', '{"methods": [[1]]}',
    '{"person": 1.5}', '{"moment": -1}', '{"part": ""}', '{"mask": "' + "x" * 7000 + '"}'])
def test_a_choice_from_elsewhere_is_checked(text: str):
    with pytest.raises(ValueError): from_json(text)


def test_programs_get_a_picture_and_people_the_widget(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    panel, shown = LookPanel(Desk(subject)), []
    monkeypatch.setattr(gallery, "display", shown.append)
    assert not attended() and present(panel).axes and not shown
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5")
    assert attended() and present(panel) is None and shown == [panel]
