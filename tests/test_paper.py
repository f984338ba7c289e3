"""The paper's own run, end to end: a FaceScrub download, its alignment, AdaFace's ir_101, every figure and table. Drawn people and made-up weights stand in."""
import csv
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdd_face.alignment import LANDMARKS, TEMPLATE
from sdd_face.model import read_record
from sdd_face.networks import embedding_network
from sdd_face.parameters import known_parameters, notebooks_folder, numbered_notebooks, read_profile
from sdd_face.synthetic import draw_faces, make_people

PEOPLE = {"actors": ["Ann Lee", "Bo Ek"], "actresses": ["Cy Day"]}
IMAGES, SCALE, CORNER = 6, 1.5, (40, 20)  # of each person; how a drawn face lies in its photograph


def write_download(folder: Path) -> None:
    """Write photographs, lists and landmarks as a download of FaceScrub leaves them."""
    drawn = draw_faces(make_people(3, seed=0), images=IMAGES, seed=0).images.permute(0, 2, 3, 1).numpy().reshape(3, IMAGES, 112, 112, 3)
    points = [f"{axis:.2f}" for axis in (TEMPLATE * SCALE + CORNER).ravel()]
    rows = []
    for label, (sex, name) in enumerate((sex, name) for sex, names in PEOPLE.items() for name in names):
        for number in range(IMAGES):
            path = folder / "photographs" / sex / name.replace(" ", "_") / f"{100 * label + number}_{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo = Image.new("RGB", (260, 220), "grey")
            photo.paste(Image.fromarray(drawn[label, number]).resize((168, 168)), CORNER)
            photo.save(path, quality=95)
            line = [name, str(100 * label + number), str(number), "http://nowhere.example/a.jpg", "40,20,208,188", sha256(path.read_bytes()).hexdigest()]
            (folder / "lists").mkdir(exist_ok=True)
            with (folder / "lists" / f"facescrub_{sex}.txt").open("a") as file: file.write("\t".join(line) + "\n")
            rows.append([f"{path.parent.name}/{path.name}", *points])
    with (folder / "landmarks.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", *(f"{point}_{axis}" for point in LANDMARKS for axis in "xy")], *rows])


def write_checkpoint(path: Path) -> None:
    """Write made-up weights, with batch norms that have seen some faces, as AdaFace's checkpoints are written."""
    torch.manual_seed(0)
    network = embedding_network("ir_101").train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm): layer.momentum = 1.0
    with torch.no_grad(): network(draw_faces(make_people(4, seed=1), images=1, seed=1).images.flip(1) / 127.5 - 1)
    torch.save({"state_dict": {f"model.{name}": value for name, value in network.state_dict().items()}, "epoch": 25}, path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the commands of the README, with a few people and one epoch."""
    folder = tmp_path_factory.mktemp("paper")
    write_download(folder)
    write_checkpoint(folder / "adaface.ckpt")
    for arguments in (
        "facescrub align photographs --out faces --landmarks landmarks.csv --metadata lists",
        "reproduce --profile facescrub -p data faces -p weights adaface.ckpt -p epochs 1 -p batch_size 8 -p learning_rate 0.0001 -p top_k 3 -p draws 1 -p device cpu "
        "-p methods sdd,cam,saliency -p families 2 -p family_images 3 -p family_tests 1 -p searched_training 4 -p compared 3 -p general 3",
    ):
        result = subprocess.run([sys.executable, "-c", "import sys; from sdd_face.cli import main; sys.exit(main())", *arguments.split()], cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
    return folder


def test_every_face_was_aligned(finished: Path):
    with (finished / "faces" / "alignment.csv").open(newline="") as file: rows = list(csv.DictReader(file))
    assert len(rows) == 3 * IMAGES and {row["status"] for row in rows} == {"aligned"}
    drawn = draw_faces(make_people(3, seed=0), images=IMAGES, seed=0).images[0].permute(1, 2, 0).numpy().astype(float)
    crop = np.asarray(Image.open(finished / "faces" / "Ann_Lee" / "0_0.jpg"), float)
    assert np.abs(crop - drawn).mean() < 6


def test_the_network_is_adafaces_and_its_settings_are_the_papers(finished: Path):
    record = read_record(finished / "runs" / "facescrub" / "model.safetensors")
    assert (record["arch"], record["color"], record["source"], record["head"]) == ("ir_101", "bgr", "an AdaFace checkpoint", "pool")
    assert record["names"] == ["Ann_Lee", "Bo_Ek", "Cy_Day"]
    paper = {"arch": "ir_101", "train": "all", "epochs": 20, "learning_rate": 0.005, "step_size": 10, "gamma": 0.1}
    assert paper.items() <= read_profile(notebooks_folder(), "facescrub").items()
    ours = {"top_k": 5, "cut": 0.2, "head": "pool", "classifier": "linear", "alpha": "divergence", "random": "rolled", "fill": "black"}
    assert ours.items() <= known_parameters(numbered_notebooks(notebooks_folder())).items()


def test_every_figure_and_table_is_there(finished: Path):
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert {f"fig{number}.png" for number in range(1, 7)} | {"table1.csv", "table1.md", "table2.csv", "table2.md", "run.json"} <= figures
    assert {"fig_readings.png", "fig_twins.jpg", "table_twins.csv", "fig_methods.jpg", "fig_verdict.png", "leaderboard.csv", "leaderboard.md", "rivals.csv"} <= figures
    run = json.loads((finished / "figures" / "run.json").read_text())
    assert run["profile"] == "facescrub" and run["parameters"]["arch"] == "ir_101"
    with (finished / "figures" / "table1.csv").open(newline="") as file: rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(np.isfinite(float(row["value"])) for row in rows)
