"""README.md is what nbs/index.ipynb gives, and its five lines of Python work."""
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_what_the_index_gives(tmp_path: Path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([ROOT / ".ci/readme", tmp_path / "README.md"], check=True, env=environment)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == README, "run .ci/readme"


def test_five_lines_explain_a_face(tmp_path: Path):
    code = re.search(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)[1]
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    result = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "agg"})
    assert result.returncode == 0, result.stderr


def test_pictures_and_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert targets and not missing
