"""What the tests share: how they are spread over the cores, one run of the real notebooks, a project of stubs."""
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]


# Every core takes whole files of tests, and computes with one thread: what a file made is shared. What takes longest
# begins first.
LONGEST = ["test_notebooks", "test_distributed", "test_paper", "test_reproduce"]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Spread the whole suite over the cores, unless -n says otherwise; a file that is named runs in this process."""
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"): return  # a worker does not
    named = any(".py" in name for name in option.file_or_dir)
    alone = named or option.usepdb or getattr(option, "cov_source", None)  # pytest-cov has to be given -n itself
    if option.numprocesses is None and not alone: option.numprocesses = "auto"
    if option.numprocesses and option.dist == "no":
        option.dist, option.loadscopereorder = "loadfile", False
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say which tests come first; leave out what takes longer."""
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes longer; --slow runs it"))

    def place(item: pytest.Item) -> int:
        name = item.module.__name__
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the notebooks with their own parameters, not small ones")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes longer than all other tests together")


# Networks and images

def untrained(people: int, **options):  # -> FaceRecognizer
    """Build the small network for so many people, always with the same weights."""
    import torch

    from sdd_face.model import FaceRecognizer
    torch.manual_seed(0)
    return FaceRecognizer("ir_tiny", [f"p{i}" for i in range(people)], **options).eval()


def noise(count: int):  # -> Tensor (count, 3, 112, 112), uint8
    """Make images of independent pixels, always the same."""
    import torch
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 112, 112), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="session")
def images():
    """Give three images of independent pixels."""
    return noise(3)


# The real notebooks, run once

SMALL = {
    "people": 8, "images_per_person": 12, "epochs": 1, "draws": 1, "training_faces": 40, "curve_faces": 8,
    "sanity_faces": 8, "reading_faces": 8, "families": 3, "family_images": 6, "family_tests": 1,
    "searched": 8, "searched_training": 8, "compared_faces": 8, "general": 8, "sanity": 4, "rise_masks": 12,
    "lime_samples": 12, "steps": 4,
}


def sdd_face(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command as a user does, in a folder."""
    command = [sys.executable, "-P", "-c", "import sys; from sdd_face.cli import main; sys.exit(main())", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@dataclass
class WholeRun:
    """A folder in which `sdd-face reproduce` ran, and how it was asked."""
    folder: Path
    parameters: dict[str, object]

    @property
    def arguments(self) -> list[str]:
        """List what the command was given."""
        given = [text for name, value in self.parameters.items() for text in ("-p", name, str(value))]
        return ["reproduce", "--beyond", *(["--run", "tiny"] if given else []), *given]

    @property
    def notebooks(self) -> Path:
        """Give the folder of the executed notebooks."""
        return self.folder / "runs" / ("tiny" if self.parameters else "quick") / "notebooks"


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> WholeRun:
    """Run all numbered notebooks in an empty folder: with small parameters, or under --slow with their own."""
    run = WholeRun(tmp_path_factory.mktemp("whole"), {} if pytestconfig.getoption("--slow") else SMALL)
    result = sdd_face(run.folder, *run.arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    return run


# A project of stub notebooks

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
    make = {True: nbformat.v4.new_markdown_cell, False: nbformat.v4.new_code_cell}
    cells = [make[text.startswith("#")](text) for text in sources]
    if declared is not None: cells.insert(1, nbformat.v4.new_code_cell(declared, metadata={"tags": ["parameters"]}))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@dataclass
class Project:
    """A folder to run the command in, and the stub notebooks that it runs there."""
    folder: Path
    notebooks: Path

    def write(self, name: str, *sources: str, declared: str | None = DECLARED) -> None:
        """Write the stub notebook NAME; its first code cell logs that it ran."""
        cells = f"# {name}\n> A stub", LOG.format(name=name), *sources
        write_notebook(self.notebooks / f"{name}.ipynb", *cells, declared=declared)

    def command(self, *arguments: str) -> list[str]:
        """Give the command line of a process that runs the command on the stubs."""
        return [sys.executable, "-P", "-c", LAUNCH, str(self.notebooks), *arguments]

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        """Start the command, to be interrupted."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.command(*arguments), cwd=self.folder, **pipes, **options)

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Run the command to its end, in a process of its own."""
        given = {"cwd": self.folder, "capture_output": True, "text": True, "timeout": 300} | options
        return subprocess.run(self.command(*arguments), **given)

    def call(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run the command to its end in this process, which saves the time of its imports."""
        from sdd_face import cli, reproduce
        here = patch.object(reproduce, "notebooks_folder", lambda: self.notebooks)
        with chdir(self.folder), here, redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try: status = cli.main(arguments)
            except SystemExit as exit: status = exit.code
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

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
    result = make_project(folder).call("reproduce")
    assert result.returncode == 0, result.stderr
    (folder / "work/runs/quick/log.txt").unlink()
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Project:
    """Give a project whose run has ended, its log emptied."""
    shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path / "work", tmp_path / "source" / "nbs")
