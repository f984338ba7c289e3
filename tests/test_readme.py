"""README.md is what nbs/index.ipynb gives, and its five lines of Python work."""
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_what_the_index_gives(tmp_path: Path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([ROOT / ".ci/readme", tmp_path / "README.md"], check=True, env=environment)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == README, "run .ci/readme"


CODES = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def run_python(code: str, folder: Path) -> str:
    """Run Python in a process of its own, and give what it printed."""
    environment = os.environ | {"MPLBACKEND": "agg"}
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_five_lines_explain_a_face(tmp_path: Path):
    assert len([line for line in CODES[0].splitlines() if line.strip()]) == 5
    run_python(CODES[0], tmp_path)
    assert (tmp_path / "explanation.png").read_bytes().startswith(b"\x89PNG")


def test_all_the_python_in_it_runs(tmp_path: Path):
    table = run_python("\n".join(CODES), tmp_path)
    assert all(f"| {name} |" in table for name in ("sdd", "cam", "occlusion", "disc"))


def test_pictures_and_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert targets and not missing


@pytest.mark.parametrize("folder", ["figures", "figures/large", "figures/facescrub12"])
def test_what_it_says_comes_out_does_come_out(folder: str):
    """The findings of the paper are the same on the default run's faces, on more of them, and on photographs."""
    with open(ROOT / folder / "findings.csv", newline="") as file: rows = list(csv.DictReader(file))
    judged = {row["measure"]: row["verdict"] for row in rows if row["verdict"]}
    assert len(judged) == 5 and set(judged.values()) == {"same"}, judged
    assert any(95 <= float(row["value"]) for row in rows if row["measure"] == "accuracy")
    if folder != "figures": assert {path.suffix for path in (ROOT / folder).iterdir()} == {".csv"}  # numbers alone
