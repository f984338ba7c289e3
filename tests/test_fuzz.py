"""Anything fed in is read, or refused in a sentence that names it: never another exception, never NaN.

Longer, with a seed: SDD_FACE_FUZZ=10000 pytest tests/test_fuzz.py --hypothesis-seed=7"""
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file

from sdd_face.checkpoints import read_checkpoint, read_record
from sdd_face.files import PACKAGED
from sdd_face.model import load_recognizer, save_recognizer
from sdd_face.reproduce import RECORD, read_progress
from sdd_face.runs import run_settings
from sdd_face.sdd import sdd

EXAMPLES = int(os.environ.get("SDD_FACE_FUZZ", 25))
often = settings(
    max_examples=EXAMPLES, deadline=20_000, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
if "SDD_FACE_FUZZ" in os.environ: often = settings(often, derandomize=False)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8)


def read(path: Path, action) -> None:
    """Let a file be read, or refused by its name."""
    try: action(path)
    except (ValueError, OSError) as error: assert path.name in str(error), error


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """Make a sound weights file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    state = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}
    save_recognizer(load_recognizer("random", ["Ann", "Bob"]), folder / "ours")
    save_file(state, folder / "safetensors")
    for kind in ("zip", "legacy"): torch.save(state, folder / kind, _use_new_zipfile_serialization=kind == "zip")
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value.numpy() for name, value in state.items()})
    (folder / "npz").write_bytes(buffer.getvalue())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["ours", "safetensors", "zip", "legacy", "npz"])
def test_changed_weights_files(whole, tmp_path, kind):
    content, path = whole[kind], tmp_path / "net.weights"
    places = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4)

    @often
    @given(changes=places, keep=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.01]), near=st.booleans())
    def look(changes, keep, near):
        changed = bytearray(content)
        for place, value in changes: changed[place % 400 if near else place] = value  # headers are in front
        path.write_bytes(changed[: int(keep * len(changed))])
        read(path, read_checkpoint)
        read(path, read_record)

    look()


def test_any_bytes_and_headers(tmp_path):
    path = tmp_path / "net.weights"

    @often
    @given(
        begin=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x89PNG", b"{", b"\x00" * 8]),
        rest=st.binary(max_size=99))
    def bytes_of_any_kind(begin, rest):
        path.write_bytes(begin + rest)
        read(path, load_recognizer)

    @often
    @given(header=ANY)
    def headers_of_any_kind(header):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
        read(path, load_recognizer)

    bytes_of_any_kind()
    headers_of_any_kind()


def test_any_record(tmp_path):
    path, right = tmp_path / "net.safetensors", read_record(PACKAGED)

    @often
    @given(changes=st.dictionaries(st.sampled_from([*right, "made_from", "people", "layer", "size"]), ANY, max_size=3))
    def records_of_any_kind(changes):
        save_file({"backbone.a": torch.ones(1)}, path, {"sdd_face": json.dumps(right | changes)})
        read(path, load_recognizer)

    records_of_any_kind()


def test_anything_in_the_folder_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "quick"
    folder.mkdir(parents=True)

    @often
    @given(kept=ANY | st.binary(max_size=40))
    def look(kept):
        content = kept if isinstance(kept, bytes) else json.dumps(kept).encode()
        readers = {RECORD: lambda path: read_progress(path.parent), "settings.json": lambda _: run_settings()}
        for name, action in readers.items():
            (folder / name).write_bytes(content)
            read(folder / name, action)

    look()


@often
@given(
    cams=arrays(np.float32, st.tuples(*[st.integers(1, 4)] * 4), elements=st.floats(width=32)),
    target=st.integers(-1, 4),
    alpha=st.sampled_from(["divergence", "fixed_point"]) | st.floats(), least=st.just("classes") | st.floats(),
    prepare=st.sampled_from(["minmax", "raw", "relu"]), order=st.sampled_from(["divergence", "cams", "map"]))
def test_sdd_of_any_maps(cams, target, alpha, least, prepare, order):
    options = {"alpha": alpha, "minimum_scale": least, "prepare": prepare, "order": order}
    try: found = sdd(torch.from_numpy(cams), target=target, size=(9, 9), **options)
    except ValueError: return
    for values in vars(found).values(): assert values.isfinite().all()
    assert found.map.min() >= 0 and found.map.max() <= 1
