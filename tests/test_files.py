"""Where files lie, whatever folder a notebook or a command is started in."""
from pathlib import Path

import pytest
from conftest import ROOT

from sdd_face.files import atomic_path, project_path
from sdd_face.parameters import numbered_notebooks


@pytest.mark.parametrize("place", ["nbs", "nbs/beyond", "nbs/running/deep"])
def test_a_path_starts_above_the_notebooks(tmp_path: Path, monkeypatch, place: str):
    (tmp_path / "settings.ini").touch()
    (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / place)
    assert project_path("runs/quick") == tmp_path / "runs/quick"
    assert project_path("/elsewhere") == Path("/elsewhere") and project_path("~") == Path.home()


@pytest.mark.parametrize("place", [".", "work", "nbs", "nbs/beyond"])
def test_elsewhere_a_path_starts_where_one_is(tmp_path: Path, monkeypatch, place: str):
    """A folder that happens to be called nbs is no project."""
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / place)
    assert project_path("runs") == tmp_path / place / "runs"


def test_the_nearest_project_counts(tmp_path: Path, monkeypatch):
    inner = tmp_path / "nbs" / "inner"
    for project in (tmp_path, inner):
        (project / "nbs" / "beyond").mkdir(parents=True, exist_ok=True)
        (project / "settings.ini").touch()
    monkeypatch.chdir(inner / "nbs" / "beyond")
    assert project_path("runs") == inner / "runs"


def test_numbered_notebooks_are_found_in_folders_and_in_order(tmp_path: Path):
    names = ["beyond/07_late.ipynb", "00_first.ipynb", "06_middle.ipynb", "beyond/10_last.ipynb"]
    for name in [*names, "index.ipynb", "running/plot.ipynb", "beyond/.ipynb_checkpoints/07_late-checkpoint.ipynb"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in numbered_notebooks(tmp_path)]
    assert found == [names[1], names[2], names[0], names[3]]
    with pytest.raises(FileNotFoundError, match="no numbered notebooks"): numbered_notebooks(tmp_path / "running")


def test_the_real_ones_are_numbered_from_zero_without_a_gap():
    notebooks = numbered_notebooks(ROOT / "nbs")
    assert [int(path.name[:2]) for path in notebooks] == list(range(len(notebooks)))
    assert {path.parent.name for path in notebooks} == {"nbs", "beyond"}


def test_a_file_gets_the_permissions_that_others_get(tmp_path):
    """Also one whose writer puts another file in its place, as safetensors does, which lets nobody else read it."""
    (tmp_path / "plain").write_text("")
    with atomic_path(tmp_path / "kept") as temporary:
        other = tmp_path / "other"
        other.touch(0o600)
        other.replace(temporary)
    assert (tmp_path / "kept").stat().st_mode == (tmp_path / "plain").stat().st_mode
