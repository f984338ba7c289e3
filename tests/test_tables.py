"""Numbers of each face become rows, comparisons, text and files, against known answers."""
import csv
import math
from dataclasses import replace

import pytest
import torch

from sdd_face.intervals import bootstrap, compare
from sdd_face.tables import Measured, heading, hold_together, intervals_over, markdown, wide, with_interval, write_table


def some(people: int = 10, faces: int = 40) -> Measured:
    """Two measures of three maps; the numbers of b exceed those of a by about 1."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(faces, generator=generator)
    values = {
        (measure, name): base + more + 0.1 * torch.randn(faces, generator=generator)
        for measure in ("drop", "change") for name, more in {"a": 0, "b": 1, "c": 0}.items()}
    return Measured(values, torch.arange(faces) % people, {"cut": 0.2, "fill": "black"})


def test_rows_are_means_with_the_intervals_of_the_bootstrap():
    measured = some()
    expected = bootstrap(torch.stack(list(measured.values.values())), measured.people, seed=3).tolist()
    rows = measured.rows(seed=3)
    assert [(row["measure"], row["map"]) for row in rows] == list(measured.values)
    assert [[row["value"], row["ci_low"], row["ci_high"]] for row in rows] == expected
    assert list(rows[0]) == ["measure", "map", "value", "ci_low", "ci_high"]
    assert measured.measures == ["drop", "change"] and measured.maps == ["a", "b", "c"] and len(measured) == 40


def test_comparisons_with_one_map_hold_together():
    measured = some()
    rows = measured.against("a", seed=2)
    keys = [("drop", "b"), ("drop", "c"), ("change", "b"), ("change", "c")]
    assert [(row["measure"], row["map"]) for row in rows] == keys and {row["reference"] for row in rows} == {"a"}
    own = torch.stack([measured.values[key] for key in keys])
    reference = torch.stack([measured.values[measure, "a"] for measure, _ in keys])
    expected = compare(own, measured.people, reference, seed=2).tolist()
    assert [[row[name] for name in ("value", "ci_low", "ci_high", "p")] for row in rows] == expected
    assert rows[0]["p"] < 0.05 < rows[1]["p"]
    assert list(rows[0]) == ["measure", "map", "reference", "value", "ci_low", "ci_high", "p"]


def test_rows_show_the_numbers_times_the_scale():
    measured = some()
    percent = replace(measured, scale=100)
    for plain, scaled in zip(measured.rows() + measured.against("a"), percent.rows() + percent.against("a")):
        for end in ("value", "ci_low", "ci_high"): assert scaled[end] == 100 * plain[end]
        assert scaled.get("p") == plain.get("p")
    selected = percent.with_difference("b", "a"), percent[percent.people < 3], percent.only("drop")
    assert [each.scale for each in selected] == [100] * 3


def test_pairs_are_compared_in_their_order_and_the_company_widens_the_interval():
    measured = some()
    rows = measured.against([("b", "a"), ("a", "b")])
    assert [(row["map"], row["reference"]) for row in rows] == [("b", "a"), ("a", "b")] * 2
    assert rows[0]["value"] == -rows[1]["value"]
    alone = measured.against([("c", "a")])[0]
    among = next(row for row in measured.against([("c", "a"), ("b", "a"), ("b", "c")]) if row["map"] == "c")
    assert alone["value"] == among["value"] and alone["ci_high"] < among["ci_high"]


def test_what_was_not_measured_cannot_be_compared():
    with pytest.raises(ValueError, match="d to compare; measured were a, b, c"): some().against([("a", "d")])
    with pytest.raises(ValueError, match="d to compare; measured were a, b, c"): some().against("d")
    with pytest.raises(ValueError, match="nothing to compare"): some().against([])
    with pytest.raises(ValueError, match="d to compare"): some().with_difference("a", "d")
    alone = Measured({("drop", "a"): torch.rand(4)}, torch.arange(4))
    assert alone.against("a") == [] and Measured({}, torch.arange(4)).rows() == []
    with pytest.raises(ValueError, match=r"drop of 'a' is \(3,\); expected \(4,\), a number for each face"):
        Measured({("drop", "a"): torch.rand(3)}, torch.arange(4))


def test_a_measure_without_one_of_two_maps_is_not_compared():
    measured = some()
    del measured.values["change", "a"]
    assert [row["measure"] for row in measured.against("a")] == ["drop"] * 2
    assert ("change", "difference") not in measured.with_difference("b", "a").values


def test_a_difference_has_an_interval_of_its_own_behind_all_maps_of_its_measure():
    measured = some().with_difference("b", "a", called="gap")
    assert list(measured.values)[2:5] == [("drop", "c"), ("drop", "gap"), ("change", "a")]
    row = measured.rows()[3]
    gap = measured.values["drop", "b"] - measured.values["drop", "a"]
    expected = bootstrap(gap[None], measured.people)[0].tolist()
    assert [row["value"], row["ci_low"], row["ci_high"]] == pytest.approx(expected)
    assert measured.options == {"cut": 0.2, "fill": "black"}


def test_faces_are_selected_and_those_without_a_number_do_not_count():
    measured = some()
    few = measured[measured.people < 3]
    assert len(few) == 12 and few.values["drop", "a"].equal(measured.values["drop", "a"][measured.people < 3])
    assert len(measured[torch.tensor([3, 1])]) == 2
    assert measured.only("change").measures == ["change"]
    assert measured.only("change", "drop").values.keys() == measured.values.keys()
    partly = measured.values["drop", "a"].where(measured.people < 3, torch.nan)
    empty = torch.full((40,), torch.nan)
    holes = Measured(measured.values | {("drop", "a"): partly, ("drop", "empty"): empty}, measured.people)
    rows = holes.rows()
    assert [rows[0][name] for name in ("value", "ci_low", "ci_high")] == pytest.approx(
        [few.rows()[0][name] for name in ("value", "ci_low", "ci_high")])
    assert rows[1:-1] == measured.rows()[1:] and math.isnan(rows[-1]["value"])
    with pytest.raises(ValueError, match="holds NaN"): holes.against("b")


def test_one_person_has_means_but_no_interval_and_the_caption_says_so():
    alone = some(people=1)
    assert all(math.isfinite(row["value"]) and math.isnan(row["ci_low"]) for row in alone.rows() + alone.against("a"))
    assert "[" not in markdown(alone.rows() + alone.against("a")) and "nan" not in markdown(alone.rows())
    assert alone.caption() == "40 faces of 1 people; one person only: no intervals. Options: cut = 0.2, fill = black."
    assert hold_together(alone.against("a")) == "" and hold_together([]) == ""
    assert "10 people" in intervals_over(10) and "no intervals" in intervals_over(1)
    assert some().caption("test faces").startswith("40 test faces of 10 people; 95 % intervals from a bootstrap over")
    assert "Options" not in Measured({}, torch.arange(2)).caption()
    assert hold_together(some().against("a")).startswith("The intervals of all 4 differences hold together")


def test_a_number_stands_with_its_interval_if_it_has_one():
    row = {"value": 1.25, "ci_low": 0.5, "ci_high": 2}
    assert with_interval(row) == "1.2 [0.5, 2.0]" and with_interval(row | {"reference": "b"}) == "+1.2 [+0.5, +2.0]"
    assert with_interval({"value": 1, "ci_low": math.nan, "ci_high": math.nan, "reference": "b"}, digits=2) == "+1.00"
    assert with_interval({"value": 1, "ci_low": -math.inf, "ci_high": math.inf}) == "1.0"
    assert with_interval({"value": 3}) == "3.0" and with_interval({"value": math.nan}) == ""


def test_a_table_has_a_row_a_map_and_a_column_a_measure():
    measured = some()
    lines = markdown(measured.rows() + measured.against("a")).splitlines()
    assert lines[:2] == ["| Map | drop | change | drop against a | change against a |", "|---|---|---|---|---|"]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| a", "| b", "| c"]
    assert lines[2].endswith("|  |  |") and lines[3].count("[") == 4 and "+1.0" in lines[3]
    assert heading({"measure": "deletion_drop"}) == "deletion drop"
    text = markdown(
        measured.rows(), digits=3, title=str.upper, column=lambda row: row["measure"].upper(), corner="Who")
    assert text.startswith("| Who | DROP | CHANGE |") and "\n| A | " in text
    assert with_interval(measured.rows()[0], digits=3) in text
    assert markdown(measured.rows(), cell=lambda row: "x").count("| x ") == 6


def test_wide_rows_hold_all_numbers_of_a_map():
    rows = some().rows() + [{"measure": "cost", "map": "a", "value": 2.0}]
    table = wide(rows, ["c", "a", "new"])
    assert list(table[0]) == ["map", "drop", "drop_low", "drop_high", "change", "change_low", "change_high", "cost"]
    assert [line["map"] for line in table] == ["c", "a", "new"] and table[0]["drop"] == rows[2]["value"]
    assert [line["cost"] for line in table] == [None, 2.0, None] and table[2]["drop_low"] is None
    alone = wide(some(people=1).rows(), ["a"])[0]
    assert alone["drop_low"] is None and alone["drop"] is not None


def test_files_are_named_and_their_columns_too(tmp_path):
    rows = some().rows()
    write_table(rows, tmp_path / "one", text="a text\n", columns={"measure": "metric"})
    with open(tmp_path / "one.csv", newline="") as file: read = list(csv.DictReader(file))
    assert list(read[0]) == ["metric", "map", "value", "ci_low", "ci_high"] and len(read) == 6
    assert read[0]["value"] == f"{rows[0]['value']:.6g}" and (tmp_path / "one.md").read_text() == "a text\n"
    write_table(rows, tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "one.md", "two.csv"]
