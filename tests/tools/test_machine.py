"""Facts about the machine: which precision is taken where."""

import pytest
import torch

from utils import machine
from utils.machine import WIDE, best_precision, has_bfloat16


@pytest.fixture(autouse=True)
def forget():
    """What was read from the machine, before and after each test."""
    has_bfloat16.cache_clear()
    yield
    has_bfloat16.cache_clear()


@pytest.mark.parametrize("capability, precision", [((7, 5), "16-mixed"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")])
def test_a_gpu_trains_in_the_half_precision_that_it_computes_in(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert best_precision(64, on_gpu=True) == precision


@pytest.mark.parametrize(
    "width, has_bfloat16, precision",
    [(WIDE, True, "bf16-mixed"), (WIDE - 1, True, "32-true"), (4 * WIDE, False, "32-true")],
)
def test_a_cpu_trains_wide_models_in_bfloat16_where_it_can(width, has_bfloat16, precision, monkeypatch):
    monkeypatch.setattr(machine, "has_bfloat16", lambda device: has_bfloat16)
    assert best_precision(width, on_gpu=False) == precision


@pytest.mark.parametrize(
    "flags, expected",
    [("fpu avx512f avx512_bf16 amx_tile", True), ("amx_bf16", True), ("avx2 avx512f avx512bw", False), (None, False)],
)
def test_what_the_processor_can_is_read_from_its_flags(flags, expected, tmp_path, monkeypatch):
    facts = tmp_path / "cpuinfo"
    if flags is not None:
        facts.write_text(f"processor : 0\nflags\t\t: {flags}\n", encoding="utf-8")
    monkeypatch.setattr(machine, "Path", lambda _: facts)
    assert has_bfloat16("cpu") is expected and not has_bfloat16("meta")
