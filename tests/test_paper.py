"""The paper's own run, end to end: a FaceScrub download, its alignment, AdaFace's checkpoint, every figure and table.

Drawn people and made-up weights stand in. A small network goes all the way; `ir_101` is loaded, and asked once.
"""
import csv
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sdd_face
from PIL import Image

from sdd_face.alignment import LANDMARKS, TEMPLATE
from sdd_face.checkpoints import read_record
from sdd_face.model import load_recognizer, predict
from sdd_face.networks import embedding_network
from sdd_face.parameters import known_parameters, notebooks_folder, numbered_notebooks, read_profile
from sdd_face.synthetic import draw_faces, make_people

PEOPLE = {"actors": ["Ann Lee", "Bo Ek"], "actresses": ["Cy Day"]}
IMAGES, SCALE, CORNER = 6, 1.5, (40, 20)  # of each person; how a drawn face lies in its photograph


def draw() -> np.ndarray:  # (3, IMAGES, 112, 112, 3), uint8
    """Draw the faces of the three people."""
    drawn = draw_faces(make_people(3, seed=0), images=IMAGES, seed=0).images
    return drawn.permute(0, 2, 3, 1).numpy().reshape(3, IMAGES, 112, 112, 3)


def write_download(folder: Path) -> None:
    """Write photographs, lists and landmarks as a download of FaceScrub leaves them."""
    drawn = draw()
    points = [f"{axis:.2f}" for axis in (TEMPLATE * SCALE + CORNER).ravel()]
    rows = []
    for label, (sex, name) in enumerate((sex, name) for sex, names in PEOPLE.items() for name in names):
        for number in range(IMAGES):
            path = folder / "photographs" / sex / name.replace(" ", "_") / f"{100 * label + number}_{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo = Image.new("RGB", (260, 220), "grey")
            photo.paste(Image.fromarray(drawn[label, number]).resize((168, 168)), CORNER)
            photo.save(path, quality=95)
            digest = sha256(path.read_bytes()).hexdigest()
            where = ["http://nowhere.example/a.jpg", "40,20,208,188", digest]
            line = [name, str(100 * label + number), str(number), *where]
            (folder / "lists").mkdir(exist_ok=True)
            with (folder / "lists" / f"facescrub_{sex}.txt").open("a") as file: file.write("\t".join(line) + "\n")
            rows.append([f"{path.parent.name}/{path.name}", *points])
    with (folder / "landmarks.csv").open("w", newline="") as file:
        columns = [f"{point}_{axis}" for point in LANDMARKS for axis in "xy"]
        csv.writer(file).writerows([["file", *columns], *rows])


def write_checkpoint(path: Path, arch: str) -> None:
    """Write made-up weights, with batch norms that have seen some faces, as AdaFace's checkpoints are written."""
    torch.manual_seed(0)
    network = embedding_network(arch).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm): layer.momentum = 1.0
    with torch.no_grad(): network(draw_faces(make_people(4, seed=1), images=1, seed=1).images.flip(1) / 127.5 - 1)
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 25}, path)


SMALL = {
    "arch": "ir_tiny", "epochs": 1, "batch_size": 8, "learning_rate": 0.0001, "top_k": 3, "draws": 1, "device": "cpu",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the commands of the README, with a small network, a few people and one epoch."""
    folder = tmp_path_factory.mktemp("paper")
    write_download(folder)
    write_checkpoint(folder / "adaface.ckpt", "ir_tiny")
    small = " ".join(f"-p {name} {value}" for name, value in SMALL.items())
    for arguments in (
        "align photographs --out faces --landmarks landmarks.csv --metadata lists",
        f"reproduce --profile facescrub -p data faces -p weights adaface.ckpt {small}",
    ):
        result = sdd_face(folder, *arguments.split())
        assert result.returncode == 0, result.stderr[-2000:]
    return folder


def test_every_face_was_aligned(finished: Path):
    with (finished / "faces" / "alignment.csv").open(newline="") as file: rows = list(csv.DictReader(file))
    assert len(rows) == 3 * IMAGES and {row["status"] for row in rows} == {"aligned"}
    crop = np.asarray(Image.open(finished / "faces" / "Ann_Lee" / "0_0.jpg"), float)
    assert np.abs(crop - draw()[0, 0].astype(float)).mean() < 6


ADAFACE = {"color": "bgr", "source": "AdaFace checkpoint", "head": "pool"}


def test_the_network_is_adafaces(finished: Path):
    record = read_record(finished / "runs" / "facescrub" / "model.safetensors")
    assert record.items() >= (ADAFACE | {"arch": "ir_tiny", "names": ["Ann_Lee", "Bo_Ek", "Cy_Day"]}).items()


def test_the_papers_own_network_is_loaded_and_answers(tmp_path: Path):
    write_checkpoint(tmp_path / "adaface.ckpt", "ir_101")
    arch = read_profile(notebooks_folder(), "facescrub")["arch"]
    model = load_recognizer(tmp_path / "adaface.ckpt", ["Ann Lee", "Bo Ek", "Cy Day"], arch=arch)
    assert model.record.items() >= (ADAFACE | {"arch": "ir_101"}).items()
    logits = predict(model, draw_faces(make_people(2, seed=0), images=1, seed=0).images)
    assert logits.shape == (2, 3) and logits.isfinite().all() and not torch.equal(logits[0], logits[1])


def test_the_settings_are_the_papers():
    paper = {"arch": "ir_101", "train": "all", "epochs": 20, "learning_rate": 0.005, "step_size": 10, "gamma": 0.1}
    assert paper.items() <= read_profile(notebooks_folder(), "facescrub").items()
    ours = {"top_k": 5, "cut": 0.2, "head": "pool", "classifier": "linear"}
    ours |= {"alpha": "divergence", "random": "rolled", "fill": "black"}
    assert ours.items() <= known_parameters(numbered_notebooks(notebooks_folder())).items()


def test_every_figure_and_table_is_there(finished: Path):
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert {f"fig{number}.png" for number in range(1, 7)} | {"run.json"} <= figures
    assert {f"table{number}.{kind}" for number in (1, 2) for kind in ("csv", "md")} <= figures
    assert {f"{name}.csv" for name in ("neighbours", "findings")} <= figures
    run = json.loads((finished / "figures" / "run.json").read_text())
    assert run["profile"] == "facescrub" and run["parameters"]["arch"] == SMALL["arch"]
    with (finished / "figures" / "table1.csv").open(newline="") as file: rows = list(csv.DictReader(file))
    assert len(rows) == 6 and all(np.isfinite(float(row["value"])) for row in rows)
