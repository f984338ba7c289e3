"""Two folders of tables are compared cell by cell."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compare_tables import main
from conftest import ROOT

IGNORED = "not compared: measured times (cost of leaderboard.csv)"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Write two tables, twice."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (before / "table1.csv").write_text("map,value\nsdd,50.20\nrandom,0.00\n")
    (before / "leaderboard.csv").write_text("map,cost,area\nsdd,1.1,0.3\n")
    shutil.copytree(before, after)
    return before, after


def compared(capsys, *folders: Path) -> tuple[int, list[str]]:
    """Compare, and give the exit status and the lines that were printed."""
    status = main([str(folder) for folder in folders])
    return status, capsys.readouterr().out.splitlines()


def test_the_same_tables_are_the_same(capsys, folders):
    assert compared(capsys, *folders) == (0, [f"0 differences; {IGNORED}"])


def test_every_cell_counts_to_the_last_digit(capsys, folders):
    (folders[1] / "table1.csv").write_text("map,value\nsdd,50.2\nrandom,0.00\n")
    expected = ["table1.csv, line 2, value: 50.20 | 50.2", f"1 differences; {IGNORED}"]
    assert compared(capsys, *folders) == (1, expected)


def test_measured_times_do_not_count(capsys, folders):
    (folders[1] / "leaderboard.csv").write_text("map,cost,area\nsdd,2.5,0.3\n")
    assert compared(capsys, *folders)[0] == 0
    (folders[1] / "leaderboard.csv").write_text("map,cost,area\nsdd,2.5,0.31\n")
    assert compared(capsys, *folders)[1][0] == "leaderboard.csv, line 2, area: 0.3 | 0.31"


@pytest.mark.parametrize(("text", "line"), [
    ("map,value\nsdd,50.20\n", "table1.csv, line 3: random,0.00 | missing"),
    ("map,value\nsdd,50.20\nrandom,0.00\nmore,1\n", "table1.csv, line 4: missing | more,1"),
    ("map,value\nsdd,50.20\nrandom\n", "table1.csv, line 3, value: 0.00 | missing"),
    ("map,drop\nsdd,50.20\nrandom,0.00\n", "table1.csv, header: map,value | map,drop"),
    ("map,value,more\nsdd,50.20,1\nrandom,0.00,1\n", "table1.csv, header: map,value | map,value,more"),
    ("", "table1.csv, header: map,value | "),
])
def test_rows_and_columns_count(capsys, folders, text: str, line: str):
    (folders[1] / "table1.csv").write_text(text)
    status, lines = compared(capsys, *folders)
    assert status == 1 and lines[0] == line


def test_renamed_and_new_columns_are_compared_all_the_same(capsys, folders):
    for text in ("map,drop\nsdd,50.21\nrandom,0.00\n", "more,value,map\n1,50.21,sdd\n1,0.00,random\n"):
        (folders[1] / "table1.csv").write_text(text)
        assert compared(capsys, *folders)[1][1:-1] == ["table1.csv, line 2, value: 50.20 | 50.21"]


def test_a_lost_or_new_table_is_named(capsys, folders):
    (folders[1] / "table1.csv").rename(folders[1] / "table2.csv")
    lines = compared(capsys, *folders)[1]
    assert lines[:2] == [f"table1.csv: only in {folders[0]}", f"table2.csv: only in {folders[1]}"]


def test_the_script_has_a_status(folders, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    runs = {(): 2, folders: 0, (folders[0], tmp_path / "empty"): 1, (folders[0], tmp_path / "nowhere"): 2}
    for arguments, status in runs.items():
        command = [sys.executable, ROOT / "tests/compare_tables.py", *arguments]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == status and "Traceback" not in result.stderr
