"""Beside others, measured in turn in one process: `pip install sdd_face[bench]`, then `pytest tests/bench_peers.py`.

Five class activation maps of one batch, and one deletion evaluation at the paper's 20 %, by this project, torchcam,
pytorch-grad-cam and Captum, each as a ratio to the bare forward passes that cannot be avoided. Everybody starts
from the same images, in float32, with as many threads. How the cost grows is measured along. Both tables go to
figures/: benchmarks.csv, growth.csv and growth.png.
"""
import csv
import platform
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sdd_face.data import Faces
from sdd_face.evaluation import Masking, evaluate
from sdd_face.model import FaceRecognizer
from sdd_face.passes import choose_precision, passes_in
from sdd_face.plot import save_figure
from sdd_face.sdd import explain, explain_features
from sdd_face.synthetic import draw_faces, make_people

captum = pytest.importorskip("captum.attr", reason="the peers are the extra `bench`")
grad_cam = pytest.importorskip("pytorch_grad_cam", reason="the peers are the extra `bench`")
torchcam = pytest.importorskip("torchcam.methods", reason="the peers are the extra `bench`")
from pytorch_grad_cam.metrics.perturbation_confidence import (  # noqa: E402
    PerturbationConfidenceMetric,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

FIGURES = Path(__file__).resolve().parents[1] / "figures"
NETWORKS = "ir_tiny", "mobilefacenet", "ir_50"
FACES = 16  # at once: with more, a CPU takes longer for each
ROUNDS, PEOPLE, TOP = 5, 64, 5
PEERS = {"torchcam": "torchcam", "pytorch-grad-cam": "grad-cam", "Captum": "captum"}


def seconds(function: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Case:
    """A network, its faces, and what everybody is asked for."""

    def __init__(self, arch: str):
        self.arch = arch
        torch.manual_seed(0)
        self.model = FaceRecognizer(arch, [f"p{i}" for i in range(PEOPLE)]).eval()
        drawn = draw_faces(make_people(FACES, seed=0), images=1, seed=0)
        each = torch.arange(FACES)
        self.faces = Faces(drawn.images, each, self.model.names, each, [f"{i}" for i in each])
        self.layer = self.model.backbone.body
        why = explain(self.model, drawn.images, top_k=TOP)
        self.classes, self.heat = why.classes, why.sdd.divergence
        threshold = self.heat.flatten(1).quantile(0.8, dim=1)[:, None, None]
        self.parts = (self.heat >= threshold)[:, None].long()  # 1: the highest fifth

    @property
    def x(self) -> Tensor:
        """Preprocess the images, as everybody has to."""
        return self.model.preprocess(self.faces.images)

    @torch.inference_mode()
    def passes(self, count: int = 1) -> None:
        """Do what cannot be avoided."""
        for _ in range(count): self.model(self.x)

    def our_maps(self) -> Tensor:
        """Compute five maps, and SDD, from the images on."""
        return explain(self.model, self.faces.images, top_k=TOP).cams

    def our_deletion(self) -> object:
        """Measure deletion and retention, from the images on."""
        return evaluate(self.model, self.faces, {"sdd": self.heat}, masking=Masking(draws=0))

    def torchcam_maps(self) -> Tensor:
        """Ask torchcam for the maps of one class after another."""
        with torchcam.CAM(self.model, self.layer, self.model.head.classifier, input_shape=(3, 112, 112)) as extract:
            logits = self.model(self.x)
            found = [extract(one.tolist(), logits, normalized=False)[0] for one in self.classes.T]
        return torch.stack(found, 1)

    def grad_cam_maps(self) -> np.ndarray:
        """Ask pytorch-grad-cam for the maps of one class after another; under this head Grad-CAM is CAM above zero."""
        with grad_cam.GradCAM(model=self.model, target_layers=[self.layer]) as extract:
            return np.stack([extract(self.x, [ClassifierOutputTarget(i) for i in one]) for one in self.classes.T], 1)

    def captum_maps(self) -> Tensor:
        """Ask Captum for the maps of one class after another."""
        extract = captum.LayerGradCam(self.model, self.layer)
        return torch.cat([extract.attribute(self.x, target=one).detach() for one in self.classes.T], 1)

    def grad_cam_deletion(self) -> np.ndarray:
        """Ask pytorch-grad-cam for the change of confidence when the highest fifth is deleted."""
        def black(image: Tensor, kept: Tensor) -> Tensor: return torch.where(kept[None] > 0, image, -1.0)
        ask = PerturbationConfidenceMetric(RemoveMostRelevantFirst(80, black))
        wanted = [ClassifierOutputTarget(i) for i in self.classes[:, 0]]
        return ask(self.x, self.heat.numpy(), wanted, nn.Sequential(self.model, nn.Softmax(1)))

    def captum_deletion(self) -> Tensor:
        """Ask Captum for the change of confidence when the highest fifth, and when the rest, is ablated."""
        ask = captum.FeatureAblation(nn.Sequential(self.model, nn.Softmax(1)))
        with torch.no_grad():
            return ask.attribute(self.x, baselines=-1.0, target=self.classes[:, 0], feature_mask=self.parts)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request) -> Case: return Case(request.param)


@pytest.fixture(scope="module")
def rows():
    """Collect rows, and write them at the end."""
    found = []
    yield found
    write(FIGURES / "benchmarks.csv", found)


def write(path: Path, rows: list[dict]) -> None:
    """Write rows with the machine, and the versions of everybody."""
    versions = {"torch": torch.__version__} | {name: version(package) for name, package in PEERS.items()}
    where = {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads"} | versions
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *where], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | where for row in rows)


def in_turn(contestants: dict[str, Callable], bare: Callable) -> dict[str, list[float]]:
    """Time everybody in turn, and give each one's ratio to the bare passes of the same round."""
    for function in (bare, *contestants.values()): function()
    ratios = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, function in contestants.items():  # bare passes before each: the machine's speed changes
            own = seconds(bare)
            ratios[name].append(seconds(function) / own)
    return ratios


def record(rows: list[dict], case: Case, task: str, passes: int, ratios: dict[str, list[float]]) -> None:
    """Add the ratios' median and quartiles."""
    for name, each in ratios.items():
        low, middle, high = np.quantile(each, [0.25, 0.5, 0.75])
        asked = {"task": task, "network": case.arch, "faces": len(case.faces), "passes": passes, "by": name}
        spread = {"first quartile": f"{low:.2f}", "third quartile": f"{high:.2f}", "rounds": ROUNDS}
        rows.append(asked | {"ratio": f"{middle:.2f}"} | spread)
        print(f"\n{task}, {case.arch}, {name}: {middle:.2f} [{low:.2f}, {high:.2f}]", end="")


def alike(a: Tensor, b: Tensor | np.ndarray) -> float:
    """Give the correlation of two sets of maps."""
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def test_five_maps(case: Case, rows: list[dict]):
    ours, theirs = case.our_maps(), {"torchcam": case.torchcam_maps(), "Captum": case.captum_maps()}
    assert all(alike(ours, maps) > 0.999 for maps in theirs.values())  # they answer the same question
    contestants = {
        "sdd_face": case.our_maps, "torchcam": case.torchcam_maps, "pytorch-grad-cam": case.grad_cam_maps,
        "Captum": case.captum_maps}
    record(rows, case, "five maps", 1, in_turn(contestants, case.passes))


def test_deletion(case: Case, rows: list[dict]):
    """pytorch-grad-cam deletes only, from two passes; we and Captum delete and retain, from three."""
    ours = case.our_deletion()
    drop = ours.drop("deletion", "sdd")
    assert np.allclose(-case.grad_cam_deletion(), drop, atol=0.02)
    assert np.allclose(case.captum_deletion()[case.parts.expand(-1, 3, -1, -1) == 1][0], drop[0], atol=0.02)
    record(rows, case, "deletion", 2, in_turn({"pytorch-grad-cam": case.grad_cam_deletion}, lambda: case.passes(2)))
    both = {"sdd_face": case.our_deletion, "Captum": case.captum_deletion}
    record(rows, case, "deletion and retention", 3, in_turn(both, lambda: case.passes(3)))


# What else may make a pass faster

def fused(network: nn.Module) -> nn.Module:
    """Copy a network, with the batch norms after convolutions folded into them."""
    copy = deepcopy(network)
    for chain in [part for part in copy.modules() if isinstance(part, nn.Sequential)]:
        names = list(chain._modules)
        for a, b in pairwise(names):
            pair = chain._modules[a], chain._modules[b]
            if not (isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d)): continue
            chain._modules[a], chain._modules[b] = fuse_conv_bn_eval(*pair), nn.Identity()
    return copy


def test_ways_to_make_a_pass(case: Case, rows: list[dict]):
    """Each beside the pass that is made today: float32, channels last, sixteen faces."""
    x, plain, folded = case.x, case.model.backbone, fused(case.model.backbone)
    compiled, many = torch.compile(plain.features), x.repeat(4, 1, 1, 1)

    def ask(features: Callable, x: Tensor, precision: str = "float32") -> Tensor:
        with torch.inference_mode(), passes_in(precision, x.device): return features(x)

    torch.testing.assert_close(ask(folded.features, x), ask(plain.features, x), rtol=1e-3, atol=1e-4)
    first = deepcopy(plain).to(memory_format=torch.contiguous_format)
    ways = {
        "64 at once, for each 16": lambda: ask(plain.features, many),
        "one at a time": lambda: [ask(plain.features, each) for each in x.split(1)],
        "channels first": lambda: ask(first.features, x.contiguous()),
        "batch norms folded": lambda: ask(folded.features, x),
        "compiled": lambda: ask(compiled, x),
        "bfloat16": lambda: ask(plain.features, x, "bfloat16"),
        "bfloat16, folded": lambda: ask(folded.features, x, "bfloat16"),
        "bfloat16, compiled": lambda: ask(compiled, x, "bfloat16")}
    ratios = in_turn(ways, lambda: ask(plain.features, x))
    ratios["64 at once, for each 16"] = [each / 4 for each in ratios["64 at once, for each 16"]]
    record(rows, case, "one pass, made otherwise", 1, ratios)


# bfloat16, where the processor multiplies it

def test_bfloat16(case: Case, rows: list[dict]):
    if choose_precision("auto", case.model.device) != "bfloat16": pytest.skip("this processor has no fast bfloat16")
    for name, task in (("maps", case.our_maps), ("deletion and retention", case.our_deletion)):
        def rounded(task=task):
            case.model.precision = "bfloat16"
            task()
            case.model.precision = "float32"

        record(rows, case, f"{name} in bfloat16, beside float32", 0, in_turn({"sdd_face": rounded}, task))


# Drawing, the other thing that the default run waits for

def test_drawing():
    people = make_people(64, seed=0)
    took = sorted(seconds(lambda: draw_faces(people, images=10)) for _ in range(5))
    print(f"\ndrawing: {640 / took[2]:.0f} faces a second", end="")


# How the cost grows

GROWTH = {
    "faces": [10, 100, 1000, 10_000], "classes": [10, 100, 1000, 10_000, 100_000], "compared": [2, 5, 10, 20, 50],
    "side": [112, 224, 448]}


def grown(what: str, size: int) -> Callable[[], object]:
    """Prepare one explanation in which one number is larger."""
    people = {"classes": size, "compared": 1000}.get(what, PEOPLE)
    model = FaceRecognizer("ir_tiny", [f"p{i}" for i in range(people)]).eval()
    faces = draw_faces(make_people(16, seed=0), images=1, seed=0).images
    if what == "faces": faces = faces.repeat(-(-size // 16), 1, 1, 1)[:size]
    if what != "side": return lambda: explain(model, faces, top_k=size if what == "compared" else TOP)
    x = nn.functional.interpolate(model.preprocess(faces), size=(size, size))

    @torch.inference_mode()
    def larger() -> object:
        features = model.features(x)
        return explain_features(model, features, model.head(features), size=(size, size))

    return larger


def test_growth():
    rows, (figure, axis) = [], plt.subplots(figsize=(6, 4), layout="constrained")
    for what, sizes in GROWTH.items():
        took = []
        for size in sizes:
            task = grown(what, size)
            took.append(min(seconds(task) for _ in range(4 if size < 10_000 or what != "faces" else 1)))
            rows.append({"of": what, "size": size, "seconds": f"{took[-1]:.4g}"})
        exponent = float(np.polyfit(np.log(sizes[-2:]), np.log(took[-2:]), 1)[0])
        for row in rows[-len(sizes):]: row["exponent at the end"] = f"{exponent:.2f}"
        axis.loglog(sizes, took, "o-", label=f"{what}: exponent {exponent:.2f}")
    axis.set(xlabel="size", ylabel="seconds for one call of explain")
    axis.legend()
    write(FIGURES / "growth.csv", rows)
    save_figure(figure, FIGURES / "growth.png")
