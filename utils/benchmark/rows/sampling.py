"""Rows about sampling: the time of a token with the key-value cache, at the size of GPT-2."""

from __future__ import annotations

import time
from statistics import median
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from transformer import GPT2, DecoderTransformer
from utils.benchmark.limits import forward_flops, sampling_bytes, wait
from utils.benchmark.peers import ctranslate2_model, transformers_model
from utils.benchmark.run import Run
from utils.benchmark.table import Row
from utils.benchmark.turns import Seconds
from utils.inference.int8 import in_int8
from utils.training.cpu import fast_on_cpu

VOCAB_SIZE = 50_257  # GPT-2's


def our_times(model: DecoderTransformer, ids: Tensor, n: int) -> Seconds:
    """Sample n tokens greedily: the times when the call began and when each token was there, n + 1 in all."""
    times = [time.perf_counter()]
    times += [wait(ids.device) for _ in model.stream(ids, n, temperature=0)]
    return times


def their_times(model: nn.Module, ids: Tensor, n: int) -> Seconds:
    """The same as `our_times`, of a model of transformers."""
    times: Seconds = []
    streamer = SimpleNamespace(put=lambda _: times.append(wait(ids.device)), end=lambda: None)
    began = time.perf_counter()
    mask = torch.ones_like(ids)
    model.generate(ids, attention_mask=mask, max_new_tokens=n, do_sample=False, streamer=streamer, pad_token_id=0)
    return [began, *times[1:]]  # the streamer gets the prompt first, then the tokens


def ctranslate2_times(generator: object, ids: Tensor, n: int) -> Seconds:
    """The same as `our_times`, of a Generator of CTranslate2."""
    times: Seconds = []

    def note(step: object) -> bool:
        """Called with every token of every text."""
        if step.batch_id == len(ids) - 1:
            times.append(time.perf_counter())
        return False  # go on

    prompts = [[str(i) for i in row] for row in ids.tolist()]
    how = {"beam_size": 1, "sampling_topk": 1, "min_length": n, "max_length": n, "include_prompt_in_result": False}
    began = time.perf_counter()
    generator.generate_batch(prompts, callback=note, **how)
    return [began, *times]


def seconds_per_token(times: Seconds) -> float:
    """The median time from one token to the next, without the first token, for which the prompt is read."""
    return median(b - a for a, b in zip(times[1:], times[2:], strict=False))


def both_models(device: torch.device) -> tuple[DecoderTransformer, nn.Module]:
    """Our GPT at the size of GPT-2, and that of transformers with the same weights."""
    torch.manual_seed(0)
    ours = DecoderTransformer(GPT2, VOCAB_SIZE)
    theirs = transformers_model(ours)
    return fast_on_cpu(ours).eval().to(device), theirs.eval().to(device)


def sampling(run: Run) -> None:
    """Greedy sampling against transformers.generate; then a token after a long text against one after a short text."""
    ours, theirs = both_models(run.machine.device)
    cases = [(1, 16), (8, 16), (1, 900)]
    if not run.quick:
        cases.append((8, 900))
    for batch_size, length in cases:
        against_transformers(run, ours, theirs, batch_size, length)
    after_a_long_text(run, ours)
    if run.machine.device.type == "cpu":
        against_ctranslate2(run, ours)


def against_transformers(run: Run, ours: DecoderTransformer, theirs: nn.Module, batch_size: int, length: int) -> None:
    """Two rows for prompts of `length` tokens: the next token, and a whole call."""
    ids = prompt(batch_size, length, run.machine.device)
    n = 16 if run.quick else 48
    calls: dict[str, list[Seconds]] = {"ours": [], "theirs": []}
    pairs = [("ours", our_times, ours), ("theirs", their_times, theirs)]
    for turn in range(3 if run.quick or batch_size * length > 900 else 9):
        for who, times_of, model in pairs[:: 1 if turn % 2 else -1]:
            calls[who].append(times_of(model, ids, n))

    where = f"GPT-2 124 M, batch {batch_size}, {length} tokens before"
    past = length + n // 2  # on average
    work = forward_flops(ours, batch_size, 1, batch_size, past), sampling_bytes(ours, batch_size, past)
    tokens = [[seconds_per_token(times) for times in calls[who]] for who in calls]
    next_token = Row("sampling", f"next token, {where}", "transformers", *tokens, work)
    whole = [[times[-1] - times[0] for times in calls[who]] for who in calls]
    whole_call = Row("sampling", f"{n} tokens and the prompt, {where}", "transformers", *whole)
    if batch_size == 1:
        next_token.must, next_token.aim = {"ratio": 1.0}, {"ratio": 1 / 1.15, "share": 0.9}
        whole_call.must = {"ratio": 1.0}
    run.add(next_token)
    run.add(whole_call)


def against_ctranslate2(run: Run, ours: DecoderTransformer) -> None:
    """Three rows for one text, three for eight: the next token in float32 and in int8 against CTranslate2, and in int8
    against our own float32.
    """
    models = {
        "ours": (our_times, ours),
        "ours, int8": (our_times, in_int8(ours)),
        "CTranslate2": (ctranslate2_times, ctranslate2_model(ours, "float32")),
        "CTranslate2, int8": (ctranslate2_times, ctranslate2_model(ours, "int8")),
    }
    for batch_size in (1, 8):
        ids = prompt(batch_size, 16, run.machine.device)
        seconds: dict[str, Seconds] = {name: [] for name in models}
        for turn in range(3 if run.quick else 9):
            for name in list(models)[:: 1 if turn % 2 else -1]:
                times_of, model = models[name]
                seconds[name].append(seconds_per_token(times_of(model, ids, 16 if run.quick else 48)))
        where = f"GPT-2 124 M, batch {batch_size}, 16 tokens before"
        rows = [
            ("", "ours", "CTranslate2", 1.1, 1.0),
            (" in int8", "ours, int8", "CTranslate2, int8", 1.3, 1.0),
            (" in int8", "ours, int8", "ours", 0.4, 0.3),
        ]
        for kind, mine, other, must, aim in rows:
            peer = "ours, float32" if other == "ours" else other
            row = Row("sampling", f"next token{kind}, {where}", peer, seconds[mine], seconds[other])
            if batch_size == 1:
                row.must, row.aim = {"ratio": must}, {"ratio": aim}
            run.add(row)


def after_a_long_text(run: Run, ours: DecoderTransformer) -> None:
    """One row: with a cache, a token after 1,000 tokens should take little more time than a token after one."""
    ids = prompt(1, 1000, run.machine.device)
    seconds: dict[int, Seconds] = {1: [], 1000: []}
    for _ in range(3 if run.quick else 9):
        for length, samples in seconds.items():
            samples.append(seconds_per_token(our_times(ours, ids[:, :length], 16)))
    work = forward_flops(ours, 1, 1, 1, 1000), sampling_bytes(ours, 1, 1000)
    name = "next token, GPT-2 124 M, 1,000 tokens before"
    run.add(Row("sampling", name, "ours, 1 token before", seconds[1000], seconds[1], work, must={"ratio": 1.3}))


def prompt(batch_size: int, length: int, device: torch.device) -> Tensor:
    """Random token ids (batch_size, length)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCAB_SIZE, (batch_size, length), generator=generator).to(device)
