"""Small passes on a CPU, in bfloat16 where that is fast; maps, gradients and statistics in float32 in any case."""
import pytest
import torch
from conftest import noise, untrained

from sdd_face.cam import logit_maps
from sdd_face.data import load_faces
from sdd_face.evaluation import Masking, evaluate
from sdd_face.finetune import Recipe, finetune
from sdd_face.gradients import saliency
from sdd_face.model import load_recognizer, predict
from sdd_face.passes import choose_precision, pass_size, passes_in
from sdd_face.sdd import explain

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def faces():
    """Draw three faces of each of four people that the packaged network knows."""
    return load_faces("synthetic", people=4, images_per_person=3, seed=1000)


@pytest.mark.parametrize("able, expected", [
    ({}, "float32"), ({"avx512_f": True, "avx512_bf16": False}, "float32"),
    ({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16")])
def test_auto_asks_the_processor(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("float32", CPU) == "float32" and choose_precision("bfloat16", CPU) == "bfloat16"
    assert choose_precision("auto", torch.device("mps")) == choose_precision("auto", torch.device("meta")) == "float32"


def test_auto_is_float32_where_torch_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", CPU) == "float32"


def test_an_unknown_precision_is_refused():
    expected = "precision is 'half'; expected 'auto', 'float32', 'bfloat16'"
    with pytest.raises(ValueError, match=expected): load_recognizer("packaged", precision="half")
    model = untrained(3)
    with pytest.raises(ValueError, match=expected): model.precision = "half"
    assert model.precision == "float32"


def test_the_passes_are_rounded_and_the_maps_are_exact(faces):
    exact, rounded = (load_recognizer("packaged", precision=each) for each in ("float32", "bfloat16"))
    x = exact.preprocess(faces.images)
    with torch.no_grad(): features, coarse = exact.features(x), rounded.features(x)
    assert coarse.dtype == torch.float32
    away = ((coarse - features).norm() / features.norm()).item()
    assert 1e-4 < away < 2e-2  # eight bits, through twenty layers
    why = explain(rounded, faces.images)
    logits = predict(rounded, faces.images, batch_size=len(faces)).gather(1, why.classes)
    _, bias = logit_maps(rounded.head, coarse, why.classes)
    torch.testing.assert_close(why.cams.mean((2, 3)) + bias, logits, rtol=1e-4, atol=1e-4)
    assert {part.dtype for part in (why.cams, why.probabilities, why.sdd.map)} == {torch.float32}


def test_a_recorded_gradient_is_exact(faces):
    exact, rounded = (load_recognizer("packaged", precision=each) for each in ("float32", "bfloat16"))
    target = faces.labels[:2]
    assert torch.equal(saliency(exact, faces.images[:2], target), saliency(rounded, faces.images[:2], target))


def test_autocast_around_it_changes_nothing(faces):
    model = load_recognizer("packaged")
    alone = explain(model, faces.images)
    with torch.autocast("cpu", torch.bfloat16): inside = explain(model, faces.images)
    for name in ("cams", "probabilities"): assert torch.equal(getattr(inside, name), getattr(alone, name)), name
    for name, value in vars(alone.sdd).items(): assert torch.equal(getattr(inside.sdd, name), value), name
    with passes_in("bfloat16", CPU), passes_in("float32", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_double_stays_double():
    model = untrained(3).double()
    model.precision = "bfloat16"
    with torch.no_grad(): assert model.features(model.preprocess(noise(1))).dtype == torch.float64


def test_training_rounds_the_passes_and_not_the_weights(faces):
    """The weights stay float32; they are near those of a training in float32, and not the same."""
    recipe, trained = Recipe(epochs=2, learning_rate=0.002, batch_size=6, augmentation="none"), {}
    for precision in ("float32", "bfloat16"):
        model = load_recognizer("packaged", faces.names, precision=precision)
        trained[precision] = finetune(model, faces, faces[:0], recipe=recipe, device="cpu").head.classifier.weight
    assert trained["bfloat16"].dtype == torch.float32
    assert not torch.equal(*trained.values())
    torch.testing.assert_close(*trained.values(), rtol=0, atol=4 * 0.002)  # of 4 steps by AdamW


def test_the_tables_say_the_same_in_both(faces):
    """Of twelve faces no number of Tables 1 and 2 moves by half a face, 4 points."""
    found = {}
    for precision in ("float32", "bfloat16"):
        model = load_recognizer("packaged", precision=precision)
        found[precision] = evaluate(model, faces, masking=Masking(draws=5))
        assert found[precision].options["precision"] == precision
    exact, rounded = (each.measured().values for each in found.values())
    for key, value in exact.items():
        assert abs(100 * (value - rounded[key]).mean()) < 4, key


def test_a_cpu_takes_small_batches():
    assert [pass_size(size, CPU) for size in (8, 256)] == [8, 16] and pass_size(256, torch.device("cuda")) == 256
