"""Damaged and hostile files: every reader of a stranger's bytes reads them, or says in one ValueError what is wrong.

The tests run a seeded minute. For longer, with other examples each time: FUZZ=20000 pytest tests/fuzz
"""

import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import transformer
from utils.data.images import load_images, read_idx
from utils.data.labelled import load_table
from utils.data.pictures import read_picture
from utils.data.text import load_corpus
from utils.data.tokenisers import bpe_tokenizer
from utils.download import unpack
from utils.training.callbacks import rows_of
from utils.training.report import read_summary
from utils.weights.loading import load_pretrained
from utils.weights.processors import read_processor
from utils.weights.saving import save_pretrained

FUZZ = int(os.environ.get("FUZZ", "0"))
fuzz = settings(
    max_examples=FUZZ or 60,
    derandomize=not FUZZ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

PIECES = [b"", b"\0", b"\xff" * 8, b"-1", b"1e999", b"NaN", b"99999999999999", b"null", b'"', b"\n", b",", b"{}", b"[]", b"\xe4"]
CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(PIECES) | st.binary(max_size=6)), min_size=1, max_size=4
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def changed(contents: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """The contents with a few stretches replaced: (where, as a share of the length; how many bytes; by which)."""
    for share, n, piece in changes:
        place = int(share * len(contents))
        contents = contents[:place] + piece + contents[place + n :]
    return contents


def read_or_refuse(read, *arguments):
    """What `read` returns, or None where it says in one ValueError that it cannot."""
    try:
        return read(*arguments)
    except ValueError as error:
        assert type(error) in (ValueError, UnicodeDecodeError) and len(str(error)) < 3000
        return None


# ------------------------------------------------------------------------------------------------ data
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


TABLE = "text,label\n" + "".join(f'"some {i} words, and more",{"ab"[i % 2]}\n' for i in range(60))


@fuzz
@given(CHANGES)
def test_tables(folder, changes):
    path = folder / "table.csv"
    path.write_bytes(changed(TABLE.encode(), changes))
    read_or_refuse(load_table, path)


@fuzz
@given(CHANGES, st.sampled_from([".txt", ".jsonl", ".md"]))
def test_texts(folder, changes, suffix):
    path = folder / f"words{suffix}"
    lines = tiny.text(300).splitlines()
    whole = "\n".join(json.dumps({"text": line}) for line in lines) if suffix == ".jsonl" else "\n".join(lines)
    path.write_bytes(changed(whole.encode(), changes))
    read_or_refuse(load_corpus, path)


@fuzz
@given(CHANGES, st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF"]), st.sampled_from(["L", "RGB", "P", "RGBA"]))
def test_pictures(changes, kind, mode):
    file = io.BytesIO()
    picture = Image.effect_noise((40, 30), 90).convert(mode)
    (picture.convert("RGB") if kind == "JPEG" else picture).save(file, kind)
    found = read_or_refuse(read_picture, io.BytesIO(changed(file.getvalue(), changes)), 8)
    assert found is None or found.shape in ((1, 8, 8), (3, 8, 8))


@fuzz
@given(CHANGES)
def test_a_folder_of_pictures(folder, changes):
    root = folder / "pictures"
    if not root.is_dir():
        tiny.pictures(root)
    path = root / "dark" / "0.png"
    path.write_bytes(changed((root / "dark" / "1.png").read_bytes(), changes))
    read_or_refuse(load_images, root, 8)


@fuzz
@given(CHANGES, st.booleans())
def test_idx_files(folder, changes, outside):
    whole = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + bytes(range(24))
    path = folder / "idx.gz"
    path.write_bytes(changed(gzip.compress(whole), changes) if outside else gzip.compress(changed(whole, changes)))
    read_or_refuse(read_idx, path)


@fuzz
@given(CHANGES, st.lists(st.text(min_size=1, max_size=12), max_size=3))
def test_archives(folder, changes, names):
    path, target = folder / "a.zip", folder / f"unpacked-{os.urandom(8).hex()}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train/a.txt", *names):
            archive.writestr(name, b"some text " * 20)
    path.write_bytes(changed(path.read_bytes(), changes))
    before = {found for found in folder.rglob("*") if target not in found.parents}
    read_or_refuse(unpack, path, target)
    assert {found for found in folder.rglob("*") if target not in found.parents} - {target} == before


# ------------------------------------------------------------------------------------------------ runs
METRICS = "epoch,step,train_loss_step,val_loss_epoch\n" + "".join(f"0,{i},{1 / (i + 1)},\n0,{i},,{i}\n" for i in range(20))


@fuzz
@given(CHANGES)
def test_metrics(folder, changes):
    path = folder / "metrics.csv"
    path.write_bytes(changed(METRICS.encode(), changes))
    for row in rows_of(path):
        assert all(isinstance(cell, str) and cell for cell in row.values())


@fuzz
@given(CHANGES, VALUES)
def test_summaries(folder, changes, value):
    path = folder / "summary.json"
    summary = {"model": "GPT", "figure": {"name": "bits per byte", "value": 1.0}, "data": {"name": "x"}, "seconds": value}
    path.write_bytes(changed(json.dumps(summary).encode(), changes))
    read_summary(path)


@pytest.fixture(scope="module")
def model(folder):
    """A saved GPT with its tokeniser, and a run that holds one."""
    module = transformer.GPT(transformer.Config(2, 2, 16, 16, causal=True, max_len=8), 300, transformer.Recipe())
    words = bpe_tokenizer(tiny.text(), 300)
    save_pretrained(module.model, folder / "model", words)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    saved = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "global_step": 1}
    torch.save(saved, folder / "run" / "checkpoints" / "best.ckpt")
    (folder / "vit").mkdir()
    (folder / "vit" / "preprocessor_config.json").write_text('{"size": {"height": 24}, "image_mean": [0.5], "image_std": [0.5]}')
    return folder


def spoiled(path: Path, changes, read, *arguments) -> None:
    """Read a folder in which one file is damaged; then put the file back."""
    whole = path.read_bytes()
    try:
        path.write_bytes(changed(whole, changes))
        read_or_refuse(read, *arguments)
    finally:
        path.write_bytes(whole)


@fuzz
@given(CHANGES, st.sampled_from(["config.json", "model.safetensors", "tokenizer.json"]))
def test_weights(model, changes, name):
    spoiled(model / "model" / name, changes, load_pretrained, model / "model")


@fuzz
@given(CHANGES)
def test_the_header_of_weights(model, changes):
    path = model / "model" / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = changed(whole[8 : 8 + length], changes)
    try:
        path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
        read_or_refuse(load_pretrained, model / "model")
    finally:
        path.write_bytes(whole)


@fuzz
@given(st.data(), VALUES)
def test_settings_of_weights(model, data, value):
    path = model / "model" / "config.json"
    whole = path.read_text(encoding="utf-8")
    config = json.loads(whole)
    config[data.draw(st.sampled_from(sorted(config)))] = value
    try:
        path.write_text(json.dumps(config), encoding="utf-8")
        read_or_refuse(load_pretrained, model / "model")
    finally:
        path.write_text(whole, encoding="utf-8")


@fuzz
@given(VALUES)
def test_index_of_weights(model, value):
    path = model / "model" / "model.safetensors.index.json"
    try:
        path.write_text(json.dumps({"weight_map": value}), encoding="utf-8")
        read_or_refuse(load_pretrained, model / "model")
    finally:
        path.unlink()


@fuzz
@given(CHANGES, VALUES, st.sampled_from(["size", "image_mean", "image_std", "resample"]))
def test_image_transforms(model, changes, value, name):
    path = model / "vit" / "preprocessor_config.json"
    spoiled(path, changes, read_processor, model / "vit")
    path.write_text(json.dumps({name: value}), encoding="utf-8")
    read_or_refuse(read_processor, model / "vit")


@fuzz
@given(CHANGES)
def test_checkpoints(model, changes):
    spoiled(model / "run" / "checkpoints" / "best.ckpt", changes, load_pretrained, model / "run")
