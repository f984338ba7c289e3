"""Every notebook runs once, the numbered ones in order, and is built as the others are."""
import ast
import json
import shutil
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, WholeRun, sdd_face
from nbdev.test import test_nb as run_nb

from sdd_face.parameters import declared_parameters, known_parameters, numbered_notebooks

NUMBERED = numbered_notebooks(ROOT / "nbs")
ALL = [path for path in sorted((ROOT / "nbs").rglob("*.ipynb")) if not path.parent.name.startswith(".")]
OTHERS = [path for path in ALL if path not in NUMBERED and path.parent.name != "course"]  # see test_course


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a notebook needs, so that runs/ and figures/ are written beside the copy."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    return folder


@pytest.mark.parametrize("notebook", OTHERS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, checkout: Path):
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    passed, _ = run_nb(checkout / notebook.relative_to(ROOT), skip_flags=settings["DEFAULT"]["tst_flags"].split())
    assert passed, "the failing cell stands in the captured stderr"


# The numbered ones: `sdd-face reproduce` in an empty folder, with small parameters, or with their own under --slow

@pytest.mark.parametrize("notebook", NUMBERED, ids=lambda path: path.stem)
def test_numbered_notebook_runs(notebook: Path, whole_run: WholeRun):
    codes = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code" and cell.source.strip()]
    executed = nbformat.read(whole_run.notebooks / notebook.name, 4).cells
    ran = [cell for cell in executed if cell.cell_type == "code" and cell.execution_count]
    assert {cell.source for cell in codes} <= {cell.source for cell in ran}
    assert not [output for cell in ran for output in cell.outputs if output.output_type == "error"]


def test_everything_from_an_empty_folder(whole_run: WholeRun):
    names = ("table1", "table2", "neighbours", "findings")
    tables = [f"{name}.{kind}" for name in names for kind in ("csv", "md")]
    figures = [f"fig{i}.png" for i in range(1, 7)]
    figures += ["fig_readings.png", "fig_verdict.png", "fig_methods.jpg", "fig_twins.jpg"]
    beyond = ["leaderboard.csv", "leaderboard.md", "rivals.csv", "table_twins.csv", "table_twins.md"]
    beyond += [f"{name}.csv" for name in ("heads", "controls", "curves", "sanity", "search", "readings")]
    made = sorted(path.name for path in (whole_run.folder / "figures").iterdir())
    assert made == sorted([*figures, *tables, *beyond, "run.json"])
    summary = json.loads((whole_run.folder / "figures/run.json").read_text())
    assert summary["parameters"].items() >= whole_run.parameters.items()
    assert summary["fingerprint"] and summary["accuracy"] and summary["evaluation"]


def test_a_second_run_repeats_nothing(whole_run: WholeRun):
    again = sdd_face(whole_run.folder, *whole_run.arguments)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"{len(NUMBERED)} of {len(NUMBERED)} notebooks were done before" in again.stdout


@pytest.fixture(params=NUMBERED, ids=lambda path: path.stem)
def cells(request) -> list[nbformat.NotebookNode]:
    """Give the cells of one numbered notebook."""
    return nbformat.read(request.param, 4).cells


def test_names_have_one_meaning():
    names = {"data", "people", "images_per_person", "arch", "weights", "run", "seed", "device", "figures"}
    assert names <= known_parameters(NUMBERED).keys()


@pytest.mark.parametrize("notebook", NUMBERED, ids=lambda path: path.stem)
def test_parameters_are_declared_with_a_comment_each(notebook: Path):
    declared_parameters(notebook)
    cell = next(cell for cell in nbformat.read(notebook, 4).cells if "parameters" in cell.metadata.get("tags", []))
    assert all("#" in line for line in cell.source.splitlines())


@pytest.mark.parametrize("notebook", ALL, ids=lambda path: path.stem)
def test_notebook_is_small(notebook: Path):
    assert notebook.stat().st_size < 500_000


def test_begins_with_a_name_and_a_sentence(cells):
    title, sentence, *_ = cells[0].source.splitlines()
    assert cells[0].cell_type == "markdown" and title.startswith("# ") and sentence.startswith("> ")


def test_ends_with_what_we_learned(cells):
    assert cells[-1].cell_type == "markdown" and cells[-1].source.startswith("## What we learned")


def test_no_error_was_left(cells):
    assert not [output for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]


def is_imports(code: str) -> bool:
    """Tell whether a cell holds imports alone, which are one to a line."""
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(code).body)


def test_cells_and_functions_are_short(cells):
    codes = [cell.source for cell in cells if cell.cell_type == "code"]
    declared = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]  # one line for each
    long = [code for code in codes if len(code.splitlines()) > 20 and code not in declared and not is_imports(code)]
    assert not [code for code in long if "#| export" not in code]
    functions = [node for code in codes for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)]
    assert not [node.name for node in functions if node.end_lineno - node.lineno >= 40]
