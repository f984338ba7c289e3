"""Whatever is fed in as weights: read by its content, or refused with the file's name and a true reason."""
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sdd_face.checkpoints import read_checkpoint, read_record
from sdd_face.files import PACKAGED
from sdd_face.heads import CLASSIFIERS
from sdd_face.model import load_recognizer, predict, save_recognizer
from sdd_face.networks import embedding_network
from sdd_face.ranges import KINDS
from sdd_face.recognizer import HEADS, FaceRecognizer
from sdd_face.sdd import explain
from sdd_face.tensor_files import read_tensors

TENSORS, RECORD = load_file(PACKAGED), read_record(PACKAGED)


def ours(path: Path, record: object = RECORD, tensors: dict = TENSORS) -> Path:
    """Write a file of our own format by hand."""
    save_file(tensors, path, {"sdd_face": record if isinstance(record, str) else json.dumps(record)})
    return path


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return embedding_network("ir_tiny").state_dict()


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "x.safetensors"


IMAGES = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# Our own format: the record

def test_the_schema_knows_what_there_is():
    assert KINDS["head"] == tuple(HEADS) and KINDS["classifier"] == tuple(CLASSIFIERS)


@pytest.mark.parametrize("record", ["{", "", "[]", "null", "7", '"text"', "[" * 5000])
def test_a_record_that_is_none_is_refused(file, record):
    for read in (load_recognizer, read_record):
        with pytest.raises(ValueError, match="x.safetensors: "): read(ours(file, record))


@pytest.mark.parametrize("key", ["arch", "color", "mean", "std", "head", "classifier", "source", "names"])
def test_a_record_without_a_key_is_refused(file, key):
    ours(file, {name: value for name, value in RECORD.items() if name != key})
    with pytest.raises(ValueError, match=f"x.safetensors: its record has no {key}"): load_recognizer(file)


@pytest.mark.parametrize("wrong", [
    {"arch": "ir_9"}, {"arch": [1]}, {"arch": None}, {"color": "cmyk"}, {"color": {}}, {"head": [1]}, {"head": 3},
    {"classifier": None}, {"mean": "127.5"}, {"mean": None}, {"mean": True}, {"mean": float("nan")}, {"mean": [1, 2]},
    {"mean": [[1, 2, 3]] * 3}, {"mean": 10**400}, {"std": 0}, {"std": -1}, {"std": float("inf")}, {"std": [1, 0, 1]},
    {"std": {}}, {"source": 3}, {"names": None}, {"names": "Ann"}, {"names": [1, 2]}, {"names": ["Ann", "Ann"]},
    {"names": [["Ann"]]}, {"made_from": []}, {"people": 3}])
def test_a_record_with_a_wrong_value_names_file_and_key(file, wrong):
    ours(file, RECORD | wrong)
    for read in (load_recognizer, read_record):
        with pytest.raises(ValueError, match=f"x.safetensors: in its record {next(iter(wrong))} is "): read(file)


def test_three_means_are_taken_as_one_is(file):
    images = IMAGES[:1]
    one, three = (load_recognizer(ours(file, RECORD | {"mean": mean})) for mean in (127.5, [127.5] * 3))
    assert torch.equal(predict(one, images), predict(three, images))


@pytest.mark.parametrize("change, message", [
    ({"names": RECORD["names"][:-1]}, "its head does not fit the record"),
    ({"names": []}, "its head does not fit the record"),
    ({"arch": "ir_18"}, r"not the weights of ir_18 \(.*; it fits ir_tiny"),
    ({"head": "own"}, "its head does not fit the record"),
    ({"classifier": "cosine"}, "its head does not fit the record"),
])
def test_tensors_that_do_not_fit_their_record_are_refused(file, change, message):
    with pytest.raises(ValueError, match=f"x.safetensors: {message}"): load_recognizer(ours(file, RECORD | change))


def test_missing_and_unexpected_tensors_are_named(file):
    bias = "head.classifier.bias"
    ours(file, tensors={name: value for name, value in TENSORS.items() if name != bias})
    with pytest.raises(ValueError, match="x.safetensors: .*1 missing: classifier.bias"): load_recognizer(file)
    ours(file, tensors=TENSORS | {"head.more": torch.ones(1)})
    with pytest.raises(ValueError, match="x.safetensors: .*1 unexpected: more"): load_recognizer(file)
    ours(file, tensors={bias: TENSORS[bias]})
    with pytest.raises(ValueError, match="x.safetensors: not the weights of ir_tiny"): load_recognizer(file)
    save_file({}, file, {"sdd_face": json.dumps(RECORD)})
    with pytest.raises(ValueError, match="x.safetensors: holds no state_dict"): load_recognizer(file)


def test_what_could_not_be_opened_again_is_not_saved(tmp_path):
    model = FaceRecognizer("ir_tiny", ["Ann", "Ann"])
    with pytest.raises(ValueError, match="names is .*; expected a list of names that differ"):
        save_recognizer(model, tmp_path / "two.safetensors")
    assert not list(tmp_path.iterdir())


def test_one_bit_is_seen_wherever_it_is(file):
    save_recognizer(load_recognizer("packaged", ["Ann", "Bob"]), file)
    whole = file.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    places = [start, start + 17, (start + len(whole)) // 2, len(whole) - 1, whole.index(b"127.5"), whole.index(b"Ann")]
    for place in places:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="x.safetensors: "): load_recognizer(file)
    file.write_bytes(whole)
    load_recognizer(file)


# Numbers that are no weights

@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["backbone.body.0.res_layer.1.weight", "head.classifier.bias"])
def test_weights_that_are_not_finite_are_refused(file, value, name):
    broken = TENSORS[name].clone()
    broken.view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"x.safetensors: .*{name.partition('.')[2]} holds NaN or infinity"):
        load_recognizer(ours(file, tensors=TENSORS | {name: broken}))


def test_kinds_of_tensors_that_are_no_weights_are_refused(state, tmp_path):
    path, name = tmp_path / "odd.pt", "body.0.res_layer.1.weight"
    weight = state[name]
    odd = {
        "NaN": weight * torch.nan, "int64": weight.long(), "bool": weight > 0, "complex64": weight + 0j,
        "huge": weight.double() + 1e300, "meta": weight.to("meta"), "sparse": weight.to_sparse(),
        "quantised": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)}
    for kind, value in odd.items():
        torch.save(state | {name: value}, path)
        with pytest.raises(ValueError, match=f"odd.pt: .*({name}|storage|Quantized|quantize)"):
            load_recognizer(path, color="rgb")
            raise AssertionError(kind)
    torch.save({each: value.bfloat16() for each, value in state.items()}, path)
    load_recognizer(path, color="rgb")


def test_a_network_whose_answers_are_no_numbers_is_refused():
    for scale in (0.0, 1e30):
        model = load_recognizer("random", ["Ann", "Bob"])
        with torch.no_grad():
            for weight in model.backbone.parameters(): weight.mul_(scale)
        with pytest.raises(ValueError, match="the network's embeddings hold NaN or infinity"): model.embed(IMAGES)
    assert not model.head(model.features(model.preprocess(IMAGES))).isfinite().all()
    for ask in (predict, lambda model, images: explain(model, images, top_k=2)):
        with pytest.raises(ValueError, match="the network's logits hold NaN or infinity"): ask(model, IMAGES)


# Files of others

@pytest.mark.parametrize("prefix, outer, inner", [
    ("module.", "", ""), ("_orig_mod.", "", ""), ("module._orig_mod.", "model.", ""), ("_orig_mod.module.", "", "net."),
    ("module.", "", "model."), ("_orig_mod.", "model.net.", ""), ("_fsdp_wrapped_module.", "", "")])
def test_what_wrappers_put_before_names_is_taken_off(state, tmp_path, prefix, outer, inner):
    path = tmp_path / "net.ckpt"
    torch.save({"state_dict": {f"{outer}{prefix}{inner}{name}": value for name, value in state.items()}}, path)
    model = load_recognizer(path, color="" if "model." in (outer, inner) else "rgb")
    assert torch.equal(model.backbone.input_layer[0].weight, state["input_layer.0.weight"])


def test_parts_that_were_compiled_and_averages_are_read(state, tmp_path):
    parts = {name.replace("body.", "body._orig_mod.", 1): value for name, value in state.items()}
    average = {f"module.{name}": value for name, value in state.items()} | {"n_averaged": torch.tensor(7)}
    for tensors in (parts, average):
        torch.save({"epoch": 3, "model": tensors}, tmp_path / "net.pth")
        load_recognizer(tmp_path / "net.pth", color="rgb")


@pytest.mark.parametrize("kind", ["safetensors", "npz", "zip", "legacy"])
@pytest.mark.parametrize("name", ["blob", "NET.NPZ", "net.safetensors"])
def test_the_content_decides_not_the_ending(state, tmp_path, kind, name):
    path = tmp_path / name
    if kind == "safetensors": save_file(state, path)
    elif kind == "npz":
        with open(path, "wb") as stream: np.savez(stream, **{key: value.numpy() for key, value in state.items()})
    else:
        with open(path, "wb") as stream: torch.save(state, stream, _use_new_zipfile_serialization=kind == "zip")
    assert torch.equal(load_recognizer(path, color="rgb").backbone.body[0].res_layer[1].weight,
                       state["body.0.res_layer.1.weight"])


@pytest.mark.parametrize("content, message", [
    (b"", "damaged, cut short or not a weights file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "a pointer of Git LFS"),
    (b"<!DOCTYPE html><html>not found</html>", "a web page"), (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    (b"\x1f\x8b\x08" + bytes(99), "packed by gzip"), (b"\x93NUMPY\x01\x00" + bytes(99), "one array of NumPy"),
    (b"\x89PNG\r\n\x1a\n" + bytes(99), "an image"), (b"Not Found", "text, beginning with 'Not Found'"),
    (bytes(1000), "damaged, cut short or not a weights file"),
])
def test_files_that_are_often_taken_for_weights_are_called_by_their_name(tmp_path, content, message):
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    for read in (load_recognizer, read_record):
        with pytest.raises(ValueError, match=f"net.pt: {message}" if read is load_recognizer else "net.pt: "):
            read(path)
    with pytest.raises(ValueError, match="a folder; expected a weights file"): load_recognizer(tmp_path)


def test_code_in_a_zip_and_other_zips_are_called_by_their_name(state, tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(ValueError, match="net.pt: TorchScript"): load_recognizer(path)
    with zipfile.ZipFile(path, "w") as archive: archive.writestr("weights/net.pth", b"x")
    with pytest.raises(ValueError, match="net.pt: a zip of other files, beginning with weights/net.pth"):
        load_recognizer(path)
    torch.save(embedding_network("ir_tiny"), path)
    with pytest.raises(ValueError, match="net.pt: holds no state_dict, .* but a pickled network"):
        load_recognizer(path)
    for keys in ({0: torch.ones(2)}, {b"a": torch.ones(2)}, {("a", 1): torch.ones(2)}):
        torch.save(keys, path)
        with pytest.raises(ValueError, match="net.pt: a tensor is called"): load_recognizer(path)


def memory_of(action) -> int:
    """Measure by how many bytes the largest memory of this process grows."""
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
@pytest.mark.parametrize("kind", ["npz", "zip", "strides"])
def test_a_bomb_is_not_unpacked(tmp_path, kind):
    path, zeros = tmp_path / "bomb", torch.zeros(2**28 // 4)
    if kind == "npz":
        with open(path, "wb") as stream: np.savez_compressed(stream, a=zeros.numpy())
    elif kind == "zip":
        torch.save({"a": zeros}, tmp_path / "plain")
        with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in plain.namelist(): packed.writestr(name, plain.read(name))
    else: torch.save({"a": torch.zeros(1).expand(2**40)}, path)
    del zeros

    def read():
        with pytest.raises(ValueError, match="bomb: .* would unpack to"): read_checkpoint(path)

    assert memory_of(read) < 2**27


def test_huge_headers_and_shapes_are_refused(tmp_path):
    path = tmp_path / "huge"
    for header in ({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
                   {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}},
                   {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, {"a": 3}, []):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        with pytest.raises(ValueError, match="huge: "): read_tensors(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="huge: damaged"): read_tensors(path)


def test_files_written_before_there_was_a_checksum_are_still_read(file):
    with safe_open(PACKAGED, "pt") as kept: assert "checksum" not in kept.metadata()
    assert load_recognizer(ours(file)).names == RECORD["names"]
