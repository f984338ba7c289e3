"""Every notebook runs, in order, and is built as the others are."""
import ast
import shutil
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
from nbdev.test import test_nb as run_nb

from conftest import ROOT
from sdd_face.parameters import declared_parameters, known_parameters, numbered_notebooks

NUMBERED = numbered_notebooks(ROOT / "nbs")
OTHERS = sorted(set((ROOT / "nbs").glob("*.ipynb")) - set(NUMBERED))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a notebook needs, so that runs/ and figures/ are written beside the copy."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    return folder


@pytest.mark.parametrize("notebook", OTHERS + NUMBERED, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, checkout: Path):
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    passed, _ = run_nb(checkout / "nbs" / notebook.name, skip_flags=settings["DEFAULT"]["tst_flags"].split())
    assert passed, "the failing cell stands in the captured stderr"


@pytest.fixture(params=NUMBERED, ids=lambda path: path.stem)
def cells(request) -> list[nbformat.NotebookNode]:
    """Give the cells of one numbered notebook."""
    return nbformat.read(request.param, 4).cells


def test_names_have_one_meaning():
    assert {"data", "people", "images_per_person", "arch", "weights", "run", "seed", "device", "figures"} <= known_parameters(NUMBERED).keys()


@pytest.mark.parametrize("notebook", NUMBERED, ids=lambda path: path.stem)
def test_parameters_are_declared_with_a_comment_each(notebook: Path):
    declared_parameters(notebook)
    cell = next(cell for cell in nbformat.read(notebook, 4).cells if "parameters" in cell.metadata.get("tags", []))
    assert all("#" in line for line in cell.source.splitlines())


@pytest.mark.parametrize("notebook", NUMBERED + OTHERS, ids=lambda path: path.stem)
def test_notebook_is_small(notebook: Path):
    assert notebook.stat().st_size < 500_000


def test_begins_with_a_name_and_a_sentence(cells):
    title, sentence, *_ = cells[0].source.splitlines()
    assert cells[0].cell_type == "markdown" and title.startswith("# ") and sentence.startswith("> ")


def test_ends_with_what_we_learned(cells):
    assert cells[-1].cell_type == "markdown" and cells[-1].source.startswith("## What we learned")


def test_no_error_was_left(cells):
    assert not [output for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]


def test_cells_and_functions_are_short(cells):
    codes = [cell.source for cell in cells if cell.cell_type == "code"]
    long = [cell.source for cell in cells if cell.cell_type == "code" and len(cell.source.splitlines()) > 20]
    assert not [code for code in long if "#| export" not in code and not code.startswith("data = ")]  # one line for each parameter
    functions = [node for code in codes for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)]
    assert not [node.name for node in functions if node.end_lineno - node.lineno >= 40]
