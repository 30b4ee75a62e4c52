"""Sampling with weights in int8: nearly the same logits, and the model as it was."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from transformer import Config, DecoderTransformer
from utils.inference.int8 import in_int8
from utils.training.cpu import fast_on_cpu, use_onednn

SIZES = {"n_layers": 2, "n_heads": 2, "d_model": 64, "d_ff": 256, "max_len": 32}


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return DecoderTransformer(Config(**SIZES, causal=True, init_std=0.1), 200).eval()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(200, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("change", [lambda model: model, fast_on_cpu, use_onednn], ids=["plain", "fast", "oneDNN"])
def test_the_logits_are_nearly_the_same(gpt, change):
    expected = gpt(ids(8, 32))
    found = in_int8(change(gpt))(ids(8, 32))
    error = (found - expected).std() / expected.std()
    assert 1e-4 < error < 0.08  # something is rounded, and little


def test_every_linear_layer_is_in_int8_and_the_model_is_as_it_was(gpt):
    before = deepcopy(gpt.state_dict())
    quick = in_int8(gpt)
    assert not any(type(module) is nn.Linear for module in quick.modules())
    assert quick.head.weight().dtype == torch.qint8
    assert torch.equal(quick.embed.tokens.weight, gpt.embed.tokens.weight)
    assert gpt.head.weight is gpt.embed.tokens.weight
    assert all(torch.equal(weight, before[name]) for name, weight in gpt.state_dict().items())


def test_it_samples_with_its_cache_as_without(gpt):
    quick = in_int8(gpt)
    texts = [quick.generate(ids(1, 4), 40, temperature=0, use_cache=use_cache) for use_cache in (True, False)]
    assert texts[0].shape == (1, 44)
    assert (texts[0] == texts[1]).float().mean() > 0.5  # not all: the inputs of a layer are rounded together


def test_a_model_elsewhere_is_refused(gpt):
    with pytest.raises(ValueError, match="model='a model on meta': must be on the CPU"):
        in_int8(gpt.to("meta"))
