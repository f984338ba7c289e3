"""Speed as ratios, measured side by side in one process; run on request: `pytest tests/bench_speed.py`.

`explain` of 64 faces is compared with the bare forward pass of the same network, and `evaluate` with the forward passes
that it cannot do without. The ratios stand in the benchmark's extra_info and are printed.
"""
import time
from collections.abc import Callable

import pytest
import torch

from sdd_face.data import Faces
from sdd_face.evaluation import Masking, evaluate
from sdd_face.model import FaceRecognizer
from sdd_face.sdd import explain
from sdd_face.synthetic import draw_faces, make_people


@pytest.fixture(scope="module")
def drawn(): return draw_faces(make_people(64, seed=0), images=1, seed=0)


@pytest.fixture(scope="module", params=["ir_tiny", "mobilefacenet"])
def model(request) -> FaceRecognizer: return FaceRecognizer(request.param, [f"p{i}" for i in range(64)]).eval()


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def side_by_side(benchmark, one: Callable[[], object], other: Callable[[], object], rounds: int) -> float:
    """Time both in turn, and give the ratio of their fastest rounds, which other work on the machine disturbs least."""
    one(), other()
    pairs = [(seconds(one), seconds(other)) for _ in range(rounds)]
    ratio = min(a for a, _ in pairs) / min(b for _, b in pairs)
    benchmark.extra_info["ratio"] = round(ratio, 3)
    benchmark.pedantic(one, rounds=3)
    print(f"\n{benchmark.name}: {ratio:.3f}")
    return ratio


@torch.inference_mode()
def forward(model: FaceRecognizer, images: torch.Tensor) -> torch.Tensor: return model(model.preprocess(images))


def test_explain_costs_little_more_than_a_forward_pass(benchmark, model, drawn):
    images = drawn.images
    side_by_side(benchmark, lambda: explain(model, images, top_k=5), lambda: forward(model, images), rounds=9)


@pytest.mark.parametrize("draws", [1, 2])
def test_evaluate_costs_little_more_than_its_forward_passes(benchmark, model, drawn, draws):
    faces = Faces(drawn.images, drawn.people, model.names, drawn.people, model.names)
    passes = 3 + 2 * draws

    def bare():
        for _ in range(passes): forward(model, drawn.images)

    masking = Masking(draws=draws)
    side_by_side(benchmark, lambda: evaluate(model, faces, masking=masking), bare, rounds=5)


def test_drawing(benchmark):
    people = make_people(64, seed=0)
    benchmark.pedantic(lambda: draw_faces(people, images=10), rounds=5, warmup_rounds=1)
    benchmark.extra_info["images_per_second"] = round(640 / benchmark.stats.stats.min)
    print(f"\n{benchmark.extra_info['images_per_second']} images a second")
