"""`sdd-face reproduce`: what runs, what does not run again, and what a user sees when something goes wrong."""
import getpass
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import DRAW, ROOT, Project, write_notebook

from sdd_face.parameters import choose_values, known_parameters, numbered_notebooks, read_profile

ALL = ["00_log", "01_draw", "02_table"]
KERNEL = "import os, sys, time\nPath('kernel.txt').write_text(str(os.getpid()))\n"


def wait_for(condition, seconds: float = 120) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Tell whether a process is there and no zombie."""
    stat = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return bool(stat.strip()) and "Z" not in stat


def kernel_of(project: Project) -> int:
    """Wait until a stub has written its kernel's process number."""
    path = project.folder / "kernel.txt"
    wait_for(lambda: path.exists() and path.read_text())
    return int(path.read_text())


# What comes out

def test_everything_is_made_once(project: Project):
    first = project.run("reproduce")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("fig1.png, table1.csv and run.json are in figures (")
    assert first.stdout.count("\n") == 1 and project.log() == ALL
    assert "cells" not in first.stderr  # no bar where no terminal shows it
    executed = sorted(path.name for path in (project.folder / "runs/quick/notebooks").iterdir())
    assert executed == [f"{name}.ipynb" for name in ALL]

    second = project.call("reproduce")
    assert second.returncode == 0 and "3 of 3 notebooks were done before" in second.stdout
    assert project.log() == ALL and second.stderr == ""


def stderr_of_terminal(project: Project, *arguments: str) -> str:
    """Run the command in a terminal of its own, and give what is seen there of stderr."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 100))
    command = project.command(*arguments)
    with subprocess.Popen(command, cwd=project.folder, stdout=subprocess.DEVNULL, stderr=its):
        os.close(its)
        seen = b""
        with suppress(OSError):  # a terminal that nobody writes to any more ends so
            while block := os.read(ours, 4096): seen += block
    os.close(ours)
    return seen.decode()


def test_bar_names_notebook_and_step(project: Project):
    progress = stderr_of_terminal(project, "reproduce")
    for name in ("00_log: 00_log", "01_draw: Figure 1", "02_table: Table 1", "11/11 cells"): assert name in progress
    assert "WARNING" not in progress and "Traceback" not in progress


def test_parameters_reach_the_notebooks_that_declare_them(project: Project):
    more = project.notebooks / "03_more.ipynb"
    write_notebook(more, "# More", "print(seed + 0.5, top)", declared="seed = 0\ntop = 5")
    asked = "-p seed 7 -p top 2 --run mine --figures pictures"
    result = project.call("reproduce", *asked.split())
    assert result.returncode == 0, result.stderr
    assert (project.folder / "pictures/fig1.png").read_text() == "seed 7"
    executed = nbformat.read(project.folder / "runs/mine/notebooks/03_more.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "7.5 2\n"
    assert "top" not in (project.folder / "runs/mine/notebooks/01_draw.ipynb").read_text()


def test_later_values_win(project: Project):
    assert project.call("reproduce", *"--profile facescrub -p seed 4 -p run a --run b".split()).returncode == 0
    assert project.log("b") == ALL and project.run_json()["parameters"]["seed"] == 4
    assert project.call("reproduce", "--profile", "facescrub").returncode == 0
    assert project.log("facescrub") == ALL and project.run_json()["parameters"]["seed"] == 3


def test_run_json_tells_how_without_telling_who(project: Project):
    (project.folder / "faces").mkdir()
    project.call("reproduce", "-p", "data", "faces")
    summary = project.run_json()
    assert summary["parameters"]["data"] == "faces" and summary["profile"] == "quick"
    assert (summary["fingerprint"], summary["accuracy"], summary["evaluation"]) == ("abc", 0.96, {"cut": 0.2})
    assert set(summary["versions"]) == {"python", "sdd_face", "torch", "torchvision", "numpy"} and summary["device"]
    seconds = summary["seconds"]["notebooks"]
    assert list(seconds) == ALL and set(seconds["01_draw"]["steps"]) == {"01_draw", "Figure 1"}
    assert summary["seconds"]["total"] == pytest.approx(sum(entry["total"] for entry in seconds.values()), abs=0.02)
    text = json.dumps(summary)
    assert str(project.folder) not in text and str(Path.home()) not in text and f'"{getpass.getuser()}"' not in text


# What is not repeated, and what is

def test_changed_cells_repeat_from_there_on(finished: Project):
    finished.write("01_draw", "## Figure 1", DRAW + "  # changed")
    finished.call("reproduce")
    assert finished.log() == ["01_draw", "02_table"]


def test_outputs_seen_in_jupyter_repeat_nothing(finished: Project):
    path = finished.notebooks / "00_log.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(notebook, path)
    finished.call("reproduce")
    assert finished.log() == []


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("another run's")])
def test_a_lost_or_foreign_figure_is_made_again(finished: Project, change):
    change(finished.folder / "figures/fig1.png")
    finished.call("reproduce")
    assert finished.log() == ["01_draw"]
    assert (finished.folder / "figures/fig1.png").read_text() == "seed 0"


def test_other_parameters_repeat_the_run(finished: Project):
    finished.call("reproduce", "-p", "seed", "1")
    assert finished.log() == ALL and (finished.folder / "figures/fig1.png").read_text() == "seed 1"


def test_changed_data_repeat_the_run(project: Project):
    faces = project.folder / "faces"
    faces.mkdir()
    (faces / "a.png").write_bytes(b"1")
    project.call("reproduce", "-p", "data", "faces")
    project.call("reproduce", "-p", "data", str(faces))  # the same folder, typed otherwise
    assert project.log() == ALL
    (faces / "a.png").write_bytes(b"22")
    project.call("reproduce", "-p", "data", "faces")
    assert project.log() == ALL + ALL


def test_a_changed_package_repeats_the_run(finished: Project, monkeypatch):
    from sdd_face import reproduce
    monkeypatch.chdir(finished.folder)
    done = lambda plan: [reproduce._is_done(plan, step) for step in plan.steps]
    assert all(done(reproduce.plan_run(folder=finished.notebooks)))
    monkeypatch.setattr(reproduce, "package_digest", lambda: "changed")
    assert not any(done(reproduce.plan_run(folder=finished.notebooks)))


def test_figures_in_another_folder_are_made_there(finished: Project):
    finished.call("reproduce", "--figures", "elsewhere")
    assert finished.log() == ["01_draw", "02_table"]
    made = sorted(path.name for path in (finished.folder / "elsewhere").iterdir())
    assert made == ["fig1.png", "run.json", "table1.csv"]


# Failures and interruptions

def test_first_failing_cell_ends_the_run(project: Project):
    project.write("01_draw", "## Figure 1", "wide = 3\nwide / 0", "raise SystemExit('never reached')")
    result = project.call("reproduce")
    assert result.returncode == 1 and result.stdout == ""
    message = result.stderr[result.stderr.index("sdd-face: ") :].splitlines()
    assert message == [
        "sdd-face: 01_draw failed in the step 'Figure 1'", "    wide / 0", "ZeroDivisionError: division by zero",
        "The executed notebook: runs/quick/notebooks/01_draw.ipynb"]
    assert "ZeroDivisionError" in (project.folder / "runs/quick/notebooks/01_draw.ipynb").read_text()
    assert not (project.folder / "figures/run.json").exists()

    project.write("01_draw", "## Figure 1", DRAW)
    assert project.call("reproduce").returncode == 0
    assert project.log() == ["00_log", "01_draw", "01_draw", "02_table"]


def test_a_kernel_that_dies_is_reported(project: Project):
    project.write("01_draw", "## Figure 1", "import os; os.kill(os.getpid(), 9)")
    result = project.call("reproduce")
    assert result.returncode == 1 and "its kernel died" in result.stderr and "Traceback" not in result.stderr


def test_a_kernel_that_cannot_start_is_told_in_a_few_lines(project: Project, monkeypatch):
    monkeypatch.setattr("sdd_face.execute.get_kernel_dict", lambda _: {"argv": ["false"], "language": "python"})
    result = project.call("reproduce")
    assert result.returncode == 1 and "did not start" in result.stderr and len(result.stderr.splitlines()) < 8


def test_killed_run_continues(project: Project):
    project.write("01_draw", "## Figure 1", KERNEL + "time.sleep(600 if not Path('mended').exists() else 0)", DRAW)
    runner = project.start("reproduce")
    kernel = kernel_of(project)
    runner.kill()
    runner.wait()
    wait_for(lambda: not is_running(kernel), seconds=60)  # an orphaned kernel ends by itself
    (project.folder / "mended").touch()
    result = project.call("reproduce")
    assert result.returncode == 0 and "1 of 3 notebooks were done before" in result.stdout, result.stderr
    assert project.log() == ["00_log", "01_draw", "01_draw", "02_table"]


def test_interrupted_run_says_how_to_continue(project: Project):
    project.write("01_draw", "## Figure 1", KERNEL + "time.sleep(600 if not Path('mended').exists() else 0)", DRAW)
    runner = project.start("reproduce", start_new_session=True)
    kernel = kernel_of(project)
    os.killpg(runner.pid, signal.SIGINT)  # what Ctrl-C sends
    out, err = runner.communicate(timeout=120)
    assert runner.returncode == 130 and out == ""
    assert err.splitlines()[-1] == "sdd-face: interrupted; the same command continues where it stopped"
    assert "Traceback" not in err and not is_running(kernel)
    (project.folder / "mended").touch()
    assert "1 of 3 notebooks were done before" in project.call("reproduce").stdout


def test_full_disk_is_one_line_and_loses_nothing(finished: Project):
    record = (finished.folder / "runs/quick/reproduce.json").read_text()
    finished.write("02_table", "## Table 1", "print('x' * 20_000)")
    result = finished.run("reproduce", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("sdd-face: ") and "File too large" in result.stderr
    kept = json.loads((finished.folder / "runs/quick/reproduce.json").read_text())
    assert {name: json.loads(record)[name] for name in ALL[:2]} == kept


# The kernel

def test_kernel_is_this_python_whatever_jupyter_knows(project: Project, tmp_path: Path):
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    kernel = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Other", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(kernel))
    (project.folder / "torch.py").write_text("raise ImportError('the wrong torch')")
    project.write("01_draw", "import sys, torch; print(sys.executable)")
    profile = tmp_path / "ipython" / "profile_default" / "startup"
    profile.mkdir(parents=True)
    (profile / "00.py").write_text("raise SystemExit('not my settings')")
    places = {"JUPYTER_PATH": str(tmp_path / "jupyter"), "IPYTHONDIR": str(tmp_path / "ipython")}
    environment = os.environ | places | {"PATH": "/usr/bin:/bin"}
    environment.pop("VIRTUAL_ENV", None)
    result = project.run("reproduce", env=environment)
    assert result.returncode == 0, result.stderr
    executed = nbformat.read(project.folder / "runs/quick/notebooks/01_draw.ipynb", 4)
    assert executed.cells[-1].outputs[0].text.strip() == sys.executable


def test_relative_paths_start_where_they_were_typed(project: Project):
    checkout = project.notebooks.parent
    (checkout / "settings.ini").touch()
    (project.notebooks / "faces").mkdir()
    write_notebook(project.notebooks / "01_draw.ipynb", "# Draw", "print(data)")
    result = project.run("reproduce", "-p", "data", "faces", cwd=project.notebooks)
    assert result.returncode == 0, result.stderr
    executed = nbformat.read(checkout / "runs/quick/notebooks/01_draw.ipynb", 4)
    assert executed.cells[-1].outputs[0].text.strip() == str(project.notebooks / "faces")
    assert json.loads((checkout / "figures/run.json").read_text())["parameters"]["data"] == "faces"


# What is refused: one line, status 2, nothing written

def assert_refused(project: Project, result: subprocess.CompletedProcess, reason: str, before: list[str]) -> None:
    """Check that a request was refused as it should be."""
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and reason in result.stderr, result.stderr
    assert project.files() == before


@pytest.mark.parametrize(("arguments", "reason"), [
    ("-p sede 1", "unknown parameter 'sede'; the notebooks know data, device, figures, run, seed, weights"),
    ("-p seed one", "seed: 'one'; expected a whole number"),
    ("--profile slow", "unknown profile 'slow'; there are facescrub, quick"),
    ("-p data nowhere", "data: nowhere is not a folder"),
    ("-p weights net.npz", "weights: net.npz is not a file"),
    ("-p weights .", "weights: . is not a file"),
    ("--run a/b", "run: 'a/b'"),
    ("--run ..", "run: '..'"),
    ("--figures note", "figures: note is a file"),
    ("--figures note/deep", "figures: note is a file"),
])
def test_refused(project: Project, arguments: str, reason: str):
    (project.folder / "note").touch()
    assert_refused(project, project.call("reproduce", *arguments.split()), reason, project.files())


def test_read_only_figures_are_refused(project: Project, monkeypatch, capsys):
    from sdd_face import cli, reproduce
    figures = project.folder / "figures"
    figures.mkdir()
    before = project.files()
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(reproduce, "notebooks_folder", lambda: project.notebooks)
    if os.geteuid() == 0: monkeypatch.setattr(os, "access", lambda path, mode: path != figures)  # root may write
    else: figures.chmod(0o555)
    assert cli.main(["reproduce"]) == 2
    assert capsys.readouterr() == ("", "sdd-face: figures: the folder figures is read-only\n")
    assert project.files() == before


def test_a_notebook_without_the_tagged_cell_is_refused(project: Project):
    project.write("01_draw", DRAW, declared=None)
    reason = "01_draw.ipynb: 0 cells are tagged 'parameters'; expected 1"
    assert_refused(project, project.call("reproduce"), reason, project.files())


def test_a_damaged_record_is_refused(finished: Project):
    (finished.folder / "runs/quick/reproduce.json").write_text("{")
    reason = "runs/quick/reproduce.json: no record of a run"
    assert_refused(finished, finished.call("reproduce"), reason, finished.files())


@pytest.mark.parametrize("missing", ["papermill", "ipykernel", "yaml", "nbformat"])
def test_without_the_extra_it_is_named(project: Project, missing: str):
    code = f"""
import sys
sys.modules[{missing!r}] = None
from sdd_face.cli import main
sys.exit(main(['reproduce']))"""
    result = subprocess.run([sys.executable, "-c", code], cwd=project.folder, capture_output=True, text=True)
    assert_refused(project, result, f"{missing} is not installed; pip install 'sdd_face[notebooks]'", [])


# The real notebooks

@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "nbs/profiles").glob("*.yaml")))
def test_profiles_set_known_parameters(profile: str):
    known = known_parameters(numbered_notebooks(ROOT / "nbs"))
    choose_values(known, read_profile(ROOT / "nbs", profile))


def test_the_paper_alone_unless_asked_for_more(tmp_path: Path, monkeypatch):
    from sdd_face import reproduce
    monkeypatch.chdir(tmp_path)
    numbers = {
        what: [step.notebook.stem[:2] for step in reproduce.plan_run(folder=ROOT / "nbs", **asked).steps]
        for what, asked in {"paper": {}, "flag": {"beyond": True}, "profile": {"profile": "beyond"}}.items()}
    assert numbers["paper"] == [f"{number:02}" for number in range(7)]
    assert numbers["flag"] == numbers["profile"] == [f"{number:02}" for number in range(18)]
    with pytest.raises(ValueError, match="families: only notebooks beyond the paper have it; add --beyond"):
        reproduce.plan_run(folder=ROOT / "nbs", parameters={"families": "3"})
    reproduce.plan_run(folder=ROOT / "nbs", parameters={"families": "3"}, beyond=True)


def test_quick_is_what_run_all_does():
    known = known_parameters(numbered_notebooks(ROOT / "nbs"))
    assert choose_values(known, read_profile(ROOT / "nbs", "quick")) == known


def test_facescrub_is_the_paper():
    profile = yaml.safe_load((ROOT / "nbs/profiles/facescrub.yaml").read_text())
    paper = {"arch": "ir_101", "train": "all", "epochs": 20, "learning_rate": 0.005, "step_size": 10, "gamma": 0.1}
    assert paper.items() <= profile.items()
