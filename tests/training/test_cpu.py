"""Linear layers by oneDNN: the same weights, the same results, and nothing else changed."""

from copy import deepcopy

import pytest
import torch
from conftest import pictures, tiny_bert, tiny_gpt, tiny_vit, words
from torch import nn
from torch.nn import functional as F

from transformer import DecoderTransformer
from utils.training import cpu
from utils.training.cpu import OneDNN, OneDNNLinear, store_head_by_columns, use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def nothing_is_too_small(monkeypatch):
    monkeypatch.setattr(cpu, "SMALL", 1)


KINDS = {"gpt": (tiny_gpt, words(3, 9)), "bert": (tiny_bert, words(3, 9)), "vit": (tiny_vit, pictures(3).float())}


@pytest.mark.parametrize("kind", KINDS)
def test_same_logits_same_gradients(kind, monkeypatch):
    build, inputs = KINDS[kind]
    plain = build().float()
    other = use_onednn(deepcopy(plain))
    assert list(other.state_dict()) == list(plain.state_dict())
    used, ask = [], torch.ops.aten.mkldnn_linear
    monkeypatch.setattr(torch.ops.aten, "mkldnn_linear", lambda *inputs: used.append(1) or ask(*inputs))
    results = []
    for model in (plain, other):
        logits = model(inputs)
        F.cross_entropy(logits.flatten(0, -2), torch.arange(logits.numel() // logits.shape[-1]) % 3).backward()
        results.append((logits, [p.grad for p in model.parameters()]))
    assert len(used) == sum(isinstance(module, nn.Linear) for module in other.modules())
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_tied_head_stays_tied_and_the_cache_changes_nothing():
    model = use_onednn(tiny_gpt().float())
    assert model.head.weight is model.embed.tokens.weight
    texts = [model.generate(words(2, 4), 20, temperature=0, use_cache=use_cache) for use_cache in (True, False)]
    assert texts[0].equal(texts[1])


@pytest.mark.parametrize("keep", [torch.zeros(3, 9, dtype=torch.bool), torch.eye(3, 9, dtype=torch.bool)])
def test_kept_places(keep):
    plain = tiny_bert().float()
    torch.testing.assert_close(use_onednn(deepcopy(plain))(words(3, 9), keep=keep), plain(words(3, 9), keep=keep))


def test_other_precisions_and_small_products_take_the_ordinary_way(monkeypatch):
    monkeypatch.setattr(torch.ops.aten, "mkldnn_linear", lambda *_: 1 / 0)
    layer = OneDNNLinear(4, 3)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "SMALL", 2 * 4 * 3 + 1)
        assert layer(torch.ones(2, 4)).shape == (2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 4)).dtype == torch.bfloat16
    assert layer.double()(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ZeroDivisionError):
        layer.float()(torch.ones(2, 4))


@pytest.mark.parametrize("vendor, expected", [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_onednn_is_for_amd(vendor, expected, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {vendor}\n")
    monkeypatch.setattr(cpu, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert cpu.onednn_is_faster() is expected
    model = cpu.fast_on_cpu(tiny_gpt().float())
    assert (type(model.head) is OneDNNLinear) is expected and model.head.weight.t().is_contiguous() is not expected


def test_store_head_by_columns():
    model = tiny_gpt()
    expected = model(words(2, 8))
    assert store_head_by_columns(model) is model and isinstance(model, DecoderTransformer)
    assert model.head.weight is model.embed.tokens.weight and model.head.weight.t().is_contiguous()
    torch.testing.assert_close(model(words(2, 8)), expected)


@pytest.mark.parametrize("use, kind", [(True, OneDNNLinear), (False, nn.Linear)])
def test_callback(use, kind):
    from types import SimpleNamespace

    module, device = nn.ModuleList([nn.Linear(2, 2)]), torch.device("cpu")
    OneDNN(use).setup(SimpleNamespace(strategy=SimpleNamespace(root_device=device)), module, "fit")
    assert type(module[0]) is kind
