"""What the tests share: a small project of stub notebooks, and the command run on it."""
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]

DECLARED = """data = "synthetic"
weights = "packaged"
run = "quick"
figures = "figures"
device = "auto"
seed = 0"""
LOG = """from pathlib import Path
folder = Path("runs") / run
folder.mkdir(parents=True, exist_ok=True)
with (folder / "log.txt").open("a") as file: file.write({name!r} + " ")"""
DRAW = """Path(figures).mkdir(parents=True, exist_ok=True)
(Path(figures) / "fig1.png").write_text(f"seed {seed}")"""
TABLE = """Path(figures).mkdir(parents=True, exist_ok=True)
(Path(figures) / "table1.csv").write_text("metric,map\\n")
(folder / "metrics.json").write_text('{"fingerprint": "abc", "accuracy": 0.96, "evaluation": {"cut": 0.2}}')"""

# The command in a process of its own, as the console script starts it, on the stub notebooks.
LAUNCH = """import sys
from pathlib import Path
import sdd_face.reproduce
from sdd_face.cli import main
folder = Path(sys.argv.pop(1))
sdd_face.reproduce.notebooks_folder = lambda: folder
sys.exit(main())"""


def write_notebook(path: Path, *sources: str, declared: str | None = DECLARED) -> None:
    """Write a notebook: markdown for what starts with '#', the tagged cell after the title, and code."""
    cells = [nbformat.v4.new_markdown_cell(text) if text.startswith("#") else nbformat.v4.new_code_cell(text) for text in sources]
    if declared is not None: cells.insert(1, nbformat.v4.new_code_cell(declared, metadata={"tags": ["parameters"]}))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@dataclass
class Project:
    """A folder to run the command in, and the stub notebooks that it runs there."""
    folder: Path
    notebooks: Path

    def write(self, name: str, *sources: str, declared: str | None = DECLARED) -> None:
        """Write the stub notebook NAME; its first code cell logs that it ran."""
        write_notebook(self.notebooks / f"{name}.ipynb", f"# {name}\n> A stub", LOG.format(name=name), *sources, declared=declared)

    def command(self, *arguments: str) -> list[str]:
        """Give the command line of a process that runs the command on the stubs."""
        return [sys.executable, "-P", "-c", LAUNCH, str(self.notebooks), *arguments]

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        """Start the command, to be interrupted."""
        return subprocess.Popen(self.command(*arguments), cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Run the command to its end."""
        return subprocess.run(self.command(*arguments), cwd=self.folder, capture_output=True, text=True, timeout=120, **options)

    def log(self, run: str = "quick") -> list[str]:
        """Give the notebooks that ran, in order."""
        path = self.folder / "runs" / run / "log.txt"
        return path.read_text().split() if path.exists() else []

    def run_json(self) -> dict:
        """Read figures/run.json."""
        return json.loads((self.folder / "figures" / "run.json").read_text())

    def files(self) -> list[str]:
        """List what lies in the folder that the command runs in."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))


def make_project(folder: Path) -> Project:
    """Make three stub notebooks: one that only logs, one with a figure, one with a table and the run's metrics."""
    project = Project(folder / "work", folder / "source" / "nbs")
    project.folder.mkdir()
    (project.notebooks / "profiles").mkdir(parents=True)
    (project.notebooks / "profiles" / "quick.yaml").write_text("# the defaults\n")
    (project.notebooks / "profiles" / "facescrub.yaml").write_text("run: facescrub\nseed: 3\n")
    project.write("00_log")
    project.write("01_draw", "## Figure 1\nThe first.", DRAW)
    project.write("02_table", "## Table 1", TABLE)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Give a project in which nothing ran yet."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a project to its end, once for all tests."""
    folder = tmp_path_factory.mktemp("finished")
    result = make_project(folder).run("reproduce")
    assert result.returncode == 0, result.stderr
    (folder / "work/runs/quick/log.txt").unlink()
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Project:
    """Give a project whose run has ended, its log emptied."""
    shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path / "work", tmp_path / "source" / "nbs")
