"""Several processes give what one gives: the same numbers, each file once, and an end when one of them fails."""
import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Project

from sdd_face.distributed import keeps_file

HAS_GLOO = torch.distributed.is_available() and torch.distributed.is_gloo_available()
pytestmark = pytest.mark.skipif(not HAS_GLOO, reason="this torch has no gloo")

# What both one process and two do; the writer saves what came out.
WORK = """
import sys
from pathlib import Path

import torch

from sdd_face.data import load_faces, split_faces
from sdd_face.distributed import (
    all_gather, all_reduce, barrier, broadcast, is_main, main_first, rank, run_once, shard, world_size)
from sdd_face.evaluation import Masking, evaluate
from sdd_face.files import atomic_path
from sdd_face.finetune import Recipe, finetune
from sdd_face.intervals import bootstrap
from sdd_face.model import load_recognizer, predict

def heard(make):
    try: make()
    except ValueError as error: return str(error)

def refuse(): raise ValueError(f"process {rank()} refuses")

def refuse_last():
    if rank() == world_size() - 1: raise ValueError("the last one refuses")
    return [1]

folder, out = Path(sys.argv[1]), {}
out["words"] = [
    broadcast(rank()), all_gather(lambda: [n * n for n in shard(range(7))]), all_gather(lambda: shard([])),
    heard(lambda: run_once(refuse)), heard(lambda: all_gather(refuse_last))]
totals = [torch.full((2, 3), 6.0 / world_size()), torch.full((4,), 2.0 / world_size())]
all_reduce(totals)
out["totals"] = torch.cat([each.flatten() for each in totals])
with main_first(): out["seen"] = (folder / "note").exists()
with atomic_path(folder / "note") as temporary: temporary.write_text(str(rank()))
barrier()

faces = load_faces(people=5, images_per_person=6)
train, val, test = split_faces(faces)
train = train[:15]  # batches of 7, and one of 1: shares of 4 and 3, then of 1 and none
trainings = [("all", "pool", torch.float64), ("all", "own", torch.float64), ("head", "own", torch.float32)]
for layers, head, kind in trainings:
    model = load_recognizer("packaged", faces.names, head=head).to(kind)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout): layer.p = 0
    if head == "own" and layers == "all": train = train[:14]  # one face alone has no variance
    how = {"layers": layers, "augmentation": "adaface" if layers == "all" else "none"}
    recipe = Recipe(epochs=2, learning_rate=0.002, batch_size=7, **how)
    finetune(model, train, val, recipe=recipe, folder=folder / layers / head, device="cpu")
    found = evaluate(model, test, batch_size=2, masking=Masking(draws=2, random="map"))
    keys = list(found.masked_confidence)
    numbers = torch.stack([measure(*key) for measure in (found.drop, found.changed) for key in keys])
    rows = 100 * bootstrap(numbers, test.labels)
    logits = predict(model, test.images, batch_size=2)
    out[layers, head] = {"model": model.state_dict(), "logits": logits, "rows": rows}
fixed = evaluate(load_recognizer("packaged"), test, batch_size=2, masking=Masking(draws=2))
out["fixed"] = {str(key): value for key, value in fixed.masked_confidence.items()}
if is_main(): torch.save(out, folder / "out.pt")
"""


def surroundings(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Give what a launcher puts into the environment of a process."""
    who = {"WORLD_SIZE": str(world_size), "RANK": str(rank)}
    return os.environ | who | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def free_port() -> int:
    """Find a port that nobody uses."""
    with socket.create_server(("localhost", 0)) as server: return server.getsockname()[1]


def run_together(command: list[str], world_size: int, folder: Path) -> list[tuple[int, str, str]]:
    """Run a command in several processes without torchrun, and give status and output of each."""
    port = free_port()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    places = [surroundings(rank, world_size, port) for rank in range(world_size)]
    started = [subprocess.Popen(command, cwd=folder, env=place, **pipes) for place in places]
    ended = [(process, *process.communicate(timeout=300)) for process in started]
    return [(process.returncode, out, err) for process, out, err in ended]


def torchrun(project: Project, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command under torchrun, in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    command = [*launcher, "--master-port", str(free_port()), *project.command(*arguments)]
    return subprocess.run(command, cwd=project.folder, capture_output=True, text=True, timeout=500)


def history(path: Path) -> list[dict[str, str]]:
    """Read a training's table, but for what was measured by the clock."""
    rows = csv.DictReader(path.read_text().splitlines())
    return [{name: row[name] for name in row if "second" not in name} for row in rows]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """Do the work in one process and in two."""
    made = {}
    for world_size in (1, 2):
        folder = tmp_path_factory.mktemp(f"world{world_size}")
        ended = run_together([sys.executable, "-c", WORK, str(folder)], world_size, folder)
        assert [status for status, _, _ in ended] == [0] * world_size, ended[-1][2]
        assert (folder / "note").read_text() == "0" and not list(folder.rglob(".*"))
        histories = {path.parent.relative_to(folder): history(path) for path in folder.rglob("history.csv")}
        made[world_size] = torch.load(folder / "out.pt") | {"histories": histories}
    return made


def test_they_agree_and_lay_their_shares_together(outcomes):
    squares = [n * n for n in range(7)]
    for world_size in (1, 2):
        assert outcomes[world_size]["words"] == [0, squares, [], "process 0 refuses", "the last one refuses"]
        assert outcomes[world_size]["totals"].tolist() == [6.0] * 6 + [2.0] * 4


@pytest.mark.parametrize("head", ["pool", "own"])
def test_training_in_two_processes_is_training_in_one(outcomes, head):
    """In float64, where rounding does not grow: AdamW makes a step of a gradient that is zero but for rounding."""
    one, two = (outcomes[world_size]["all", head] for world_size in (1, 2))
    assert list(one["model"]) == list(two["model"])
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-6, atol=1e-8, msg=name)
    torch.testing.assert_close(two["logits"], one["logits"], rtol=1e-5, atol=1e-6)


def test_training_the_head_in_two_processes_is_training_it_in_one(outcomes):
    one, two = (outcomes[world_size]["head", "own"]["model"] for world_size in (1, 2))
    for name, value in one.items(): torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_histories_and_tables_agree_in_every_printed_digit(outcomes):
    assert len(outcomes[1]["histories"]) == 3 and outcomes[1]["histories"] == outcomes[2]["histories"]
    for key in (("all", "pool"), ("all", "own"), ("head", "own")):
        one, two = (outcomes[world_size][key]["rows"] for world_size in (1, 2))
        printed = [[[f"{number:.4f}" for number in row] for row in rows.tolist()] for rows in (one, two)]
        assert len(one) == 8 and printed[0] == printed[1]  # two measures of two schemes and two maps


def test_every_face_has_the_same_masks_and_bits(outcomes):
    assert outcomes[1]["fixed"].keys() == outcomes[2]["fixed"].keys()
    for name, value in outcomes[1]["fixed"].items(): assert torch.equal(outcomes[2]["fixed"][name], value), name


def test_all_but_the_writer_write_only_into_their_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not keeps_file(tmp_path / "a")
    monkeypatch.setenv("SDD_FACE_OWN", str(tmp_path / "own"))
    assert keeps_file(tmp_path / "own" / "deep" / "a")
    assert not keeps_file(tmp_path / "a") and not keeps_file(tmp_path / "own")


# The command on stub notebooks

def test_the_command_speaks_once_and_repeats_nothing(project: Project):
    """Without torchrun: the writer serves the store."""
    for done in ("", "3 of 3 notebooks were done before"):
        (status, out, _), (other, silent, quiet) = run_together(project.command("reproduce"), 2, project.folder)
        assert status == other == 0 and done in out and out.count("\n") == 1 and silent == ""
        assert "cells" not in quiet
    assert project.log() == ["00_log", "00_log", "01_draw", "01_draw", "02_table", "02_table"]
    assert project.run_json()["processes"] == 2
    assert not [name for name in project.files() if "partial" in name]


def test_a_refusal_is_said_once(project: Project):
    command = project.command("reproduce", "-p", "sede", "1")
    (status, _, err), (other, _, silent) = run_together(command, 2, project.folder)
    assert status == other == 2 and err.startswith("sdd-face: unknown parameter 'sede'")
    assert silent == "" and project.files() == []


def test_a_process_that_fails_ends_the_others(project: Project):
    imports = "import os\nfrom sdd_face.distributed import barrier"
    project.write("01_draw", imports, "if os.environ['RANK'] == '1': 1 / 0", "barrier()")
    result = torchrun(project, "reproduce")
    assert result.returncode != 0 and "sdd-face: process 1: 01_draw failed in the step '01_draw'" in result.stderr
    record = json.loads((project.folder / "runs/quick/reproduce.json").read_text())
    assert not (project.folder / "figures").exists() and "01_draw" not in record


def test_one_whose_partner_is_gone_says_so(tmp_path):
    code = """
import os
from sdd_face.distributed import barrier
barrier()
if os.environ["RANK"] == "1": os._exit(3)
barrier()"""
    (status, _, err), (other, _, _) = run_together([sys.executable, "-c", code], 2, tmp_path)
    assert status == 1 and other == 3
    assert "ConnectionError: process 0 of 2 lost the others; one of them has failed" in err


# The command on the real notebooks

def real_project(folder: Path, *names: str) -> Project:
    """Give a folder to run some of the real notebooks in."""
    project = Project(folder / "work", folder / "source" / "nbs")
    project.folder.mkdir(parents=True)
    shutil.copytree(ROOT / "nbs" / "profiles", project.notebooks / "profiles")
    for name in names: shutil.copy(ROOT / "nbs" / f"{name}.ipynb", project.notebooks)
    return project


def read_apart(path: Path) -> tuple[str, list[float]]:
    """Give the words of a table, and its numbers."""
    number = r"[-+]?\d+\.\d+"
    text = path.read_text()
    return re.sub(number, "#", text), [float(each) for each in re.findall(number, text)]


def test_the_tables_of_two_processes_are_those_of_one(tmp_path):
    """With the head alone, whose training does not let rounding grow; one of the notebooks writes and reads back."""
    small = "-p people 6 -p images_per_person 10 -p epochs 1 -p device cpu"
    arguments = f"reproduce {small} -p train head -p augmentation none".split()
    one = real_project(tmp_path / "one", "03_finetune", "06_evaluation")
    two = real_project(tmp_path / "two", "01_data", "03_finetune", "06_evaluation")
    plain = one.run(*arguments)
    assert plain.returncode == 0, plain.stderr
    result = torchrun(two, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("run.json are in figures") == 1
    for name in ("table1.csv", "table2.csv", "table1.md", "table2.md"):
        (words, numbers), (others, same) = (read_apart(each.folder / "figures" / name) for each in (one, two))
        assert words == others and numbers == pytest.approx(same, abs=0.011), name  # a sum in parts rounds otherwise
    assert set(two.files()) == {*one.files(), "runs/quick/notebooks/01_data.ipynb"}
    summary = two.run_json()
    assert {"training", "evaluation"} <= summary.keys() and summary["evaluation"]["passes_per_second"] > 0
