"""The benchmark: its arithmetic, its peers, its turns and its table. No test expects a certain time."""

import json
import math
import re
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import tiny_bert, tiny_gpt, tiny_vit, words
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import transformer
from transformer import GPT, Config, DecoderTransformer, EncoderTransformer, Recipe
from utils.benchmark import __main__ as command
from utils.benchmark import limits, peers, turns
from utils.benchmark.limits import Machine
from utils.benchmark.rows import processes, sampling, shakespeare, training
from utils.benchmark.rows.shakespeare import Watch
from utils.benchmark.run import Run
from utils.benchmark.table import Row, amount, spread, table
from utils.benchmark.tasks import random_corpus, random_tokenizer
from utils.benchmark.turns import TakeTurns
from utils.data.text import GPTData

TINY = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_ff": 64}
CPU = torch.device("cpu")


def row(**changes) -> Row:
    return Row(**{"group": "g", "name": "work", "peer": "other", "ours": [2.0, 4.0, 3.0], "theirs": [4.0, 4.0, 2.0]} | changes)


# ------------------------------------------------------------------------------------------------ figures
def test_spread():
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "n": 5}
    assert spread([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0, "n": 1}


def test_ratio_is_of_turns_and_not_of_medians():
    assert row().ratios() == [0.5, 1.0, 1.5]
    slow_turn = row(ours=[1.0, 10.0, 1.0], theirs=[2.0, 20.0, 2.0])
    assert slow_turn.figures()["ratio"] == 0.5
    with pytest.raises(ValueError):
        row(theirs=[1.0]).ratios()


@pytest.mark.parametrize(
    "bounds, kept",
    [
        ({}, None), ({"ratio": 1.0}, True), ({"ratio": 0.99}, False), ({"ours": 3.0}, True), ({"ours": 2.9}, False),
        ({"share": 0.5}, True), ({"share": 0.51}, False), ({"ratio": 1.0, "share": 0.51}, False),
    ],
)  # fmt: skip
def test_limits(bounds, kept):
    assert row(floor=1.5).holds(bounds) is kept


def test_amounts():
    texts = {math.inf: "never", 12.3456: "12.3 s", 1.0: "1.00 s", 0.1234: "123 ms", 0.00567: "5.67 ms", 4.5e-5: "45.0 µs", 3e-7: "0.30 µs"}
    assert {value: amount(value, "s") for value in texts} == texts
    assert amount(3 * 2**20, "bytes") == "3 MiB"


def test_table():
    kept, broken = row(floor=1.5, must={"ratio": 1.0}), row(name="more", must={"ratio": 0.5}, aim={"ours": 3.0})
    lines = table([kept, broken]).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| work | 3.00 s | other: 4.00 s | 1.00 (0.75 to 1.25) | 1.50 s, 50% of our time | ratio ≤ 1: yes |  |"
    assert lines[3].endswith("|  | ratio ≤ 0.5: **no** | ≤ 3.00 s: yes |")


def test_notes_stand_once_below_the_table():
    lines = table([row(note="once"), row(note="once")]).splitlines()
    assert lines[4:] == ["", "- work: once."]


def test_json_of_a_row():
    report = json.loads(json.dumps(row(ours=[math.inf, 1.0, 2.0], floor=1.5, must={"ratio": 0.9}, aim={"share": 0.4}, note="ü").to_json()))
    assert report["ours"] == [None, 1.0, 2.0] and report["note"] == "ü"  # JSON knows no infinity
    assert report["spread"]["ratio"] == {"median": 1.0, "low": 0.625, "high": None, "n": 3}
    assert (report["must_holds"], report["aim_holds"]) == (False, True)


# ------------------------------------------------------------------------------------------------ limits
def counted(model: nn.Module, *inputs: torch.Tensor, **more) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(*inputs, **more)
    return counter.get_total_flops()


def test_flops_of_bert_and_vit_are_those_that_torch_counts():
    bert = EncoderTransformer.bert(Config(**TINY, norm_first=False), vocab_size=50)
    ids, kept = words(3, 12), torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.3
    assert limits.forward_flops(bert, 3, 12, int(kept.sum())) == counted(bert, ids, keep=kept)
    assert limits.forward_flops(bert, 3, 12, 36) == counted(bert, ids)
    vit = EncoderTransformer.vit(Config(**TINY), image_size=8, patch_size=2, n_classes=3)
    assert limits.forward_flops(vit, 5, 17, 5) == counted(vit, torch.randn(5, 3, 8, 8))


def test_flops_of_gpt_leave_out_what_is_masked():
    gpt = DecoderTransformer(Config(**TINY, causal=True), vocab_size=50)
    full = counted(gpt, words(3, 12))  # torch counts the masked half as well
    unseen = 3 * 12 * 11 / 2  # pairs of positions
    assert limits.forward_flops(gpt, 3, 12, 36) == full - unseen * TINY["n_layers"] * 4 * TINY["d_model"]
    longer = limits.forward_flops(gpt, 1, 13, 1) - limits.forward_flops(gpt, 1, 12, 1)
    assert limits.forward_flops(gpt, 1, 1, 0, past=12) == longer


def test_flops_of_training_are_those_that_torch_counts():
    vit = EncoderTransformer.vit(Config(**TINY), image_size=8, patch_size=2, n_classes=3)
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        vit(torch.randn(5, 3, 8, 8)).sum().backward()
    assert limits.training_flops(vit, 5, 17, 5) == counter.get_total_flops()


def test_model_flops_as_palm_reckons_them():
    gpt = DecoderTransformer(Config(**TINY, causal=True, max_len=20), vocab_size=50)
    weights = sum(p.numel() for p in gpt.parameters()) - 20 * 16
    assert limits.model_flops(gpt, 2, 10) == 20 * (6 * weights + 12 * 2 * 16 * 10)


def test_bytes():
    linear = nn.Linear(3, 5)
    assert limits.training_bytes(linear) == 20 * 4 * 10
    gpt = DecoderTransformer(Config(**TINY, causal=True, max_len=20), vocab_size=50)
    weights = sum(p.numel() for p in gpt.parameters()) - 19 * 16
    cache = 2 * sum(k.numel() for k in [torch.empty(3, 2, 7, 8)] * TINY["n_layers"])
    assert limits.sampling_bytes(gpt, 3, 7) == 4 * (weights + cache)


def test_floor_is_the_longer_of_two_times():
    machine = Machine(CPU, flops=100.0, bandwidth=10.0)
    assert machine.floor(200, 10) == 2 and machine.floor(200, 50) == 5
    machine.measure(side=8, size=2**13)
    assert machine.flops >= 100 and machine.bandwidth >= 10


@pytest.mark.parametrize("card, peak", [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40", None), ("NVIDIA L4", 121e12)])
def test_peak_of_a_card(card, peak):
    assert limits.card_peak(card) == peak


# ------------------------------------------------------------------------------------------------ peers
def tiny_model(kind: str):
    """In float64, with bold weights."""
    if kind == "ViT":
        return tiny_vit(d_ff=64, norm_eps=1e-6), (torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 1]))
    ids, targets = words(3, 11)[:, :-1], words(3, 11)[:, 1:].clone()
    if kind == "GPT":
        return tiny_gpt(activation="gelu_tanh"), (ids, targets)
    targets[:, ::2] = -100
    return tiny_bert(norm_eps=1e-12), (ids, targets)


@pytest.mark.parametrize("kind", ["GPT", "BERT", "ViT"])
def test_peers_compute_one_loss(kind):
    ours, batch = tiny_model(kind)
    kept = batch[-1] != -100
    expected = nn.functional.cross_entropy(ours(batch[0])[kept], batch[-1][kept])
    torch.testing.assert_close(peers.loss_of_all_logits(ours, *batch), expected)
    torch.testing.assert_close(peers.loss_of_kept_logits(ours, *batch), expected)
    for name, (build, loss) in peers.peers(kind, ours).items():
        if name not in ("timm", "vit-pytorch"):
            theirs = build().double().eval()
            assert loss(theirs, *batch).item() == pytest.approx(expected.item(), rel=1e-6), name
            assert limits.parameters_of(theirs) == limits.parameters_of(ours)


# vit-pytorch has no biases in q, k and v, and two more norms in front.
@pytest.mark.parametrize("name, more", [("timm", 0), ("vit-pytorch", 2 * (3 * 4 * 4 + 16) - 2 * 3 * 16)])
def test_other_vits_have_our_sizes(name, more):
    ours = EncoderTransformer.vit(Config(**TINY), image_size=8, patch_size=4, n_classes=3)
    theirs = peers.peers("ViT", ours)[name][0]()
    assert theirs(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    assert limits.parameters_of(theirs) - limits.parameters_of(ours) == more


def test_the_stub_of_torchvision_does_not_stay():
    assert hasattr(peers.import_timm(), "VisionTransformer")
    assert not any(isinstance(finder, peers.TorchvisionStub) for finder in sys.meta_path)
    assert not isinstance(getattr(sys.modules.get("torchvision"), "__loader__", None), peers.TorchvisionStub)


def test_random_weights_of_transformers_are_as_many():
    ours, _ = tiny_model("BERT")
    assert limits.parameters_of(peers.transformers_model(ours, weights=False)) == limits.parameters_of(ours)


def test_both_sample_the_same_tokens_and_are_timed_at_each():
    torch.manual_seed(0)
    ours = DecoderTransformer(Config(**TINY, causal=True, activation="gelu_tanh", max_len=32, init_std=0.5), 50).eval()
    theirs = peers.transformers_model(ours).eval()
    ids = words(2, 5)
    calls = sampling.our_times(ours, ids, 6), sampling.their_times(theirs, ids, 6)
    assert [len(times) for times in calls] == [7, 7]
    assert all(times == sorted(times) for times in calls)
    sampled = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(ours.generate(ids, 6, temperature=0), sampled)


def test_ctranslate2_samples_the_same_tokens_and_has_an_int8():
    torch.manual_seed(0)
    ours = DecoderTransformer(Config(**TINY, causal=True, activation="gelu_tanh", max_len=32, init_std=0.5), 50).eval()
    theirs = peers.ctranslate2_model(ours, "float32")
    ids = words(2, 5)
    times = sampling.ctranslate2_times(theirs, ids, 6)
    assert len(times) == 7 and times == sorted(times)
    how = {"beam_size": 1, "sampling_topk": 1, "max_length": 6, "min_length": 6, "include_prompt_in_result": False}
    sampled = [one.sequences[0] for one in theirs.generate_batch([[str(i) for i in row] for row in ids.tolist()], **how)]
    assert [[int(i) for i in row] for row in sampled] == ours.generate(ids, 6, temperature=0)[:, 5:].tolist()
    assert theirs.compute_type == "float32"
    assert peers.ctranslate2_model(ours, "int8").compute_type.startswith("int8")


def test_time_of_a_token_leaves_out_the_reading_of_the_prompt():
    assert sampling.seconds_per_token([0.0, 100.0, 101.0, 103.0, 104.0]) == 1.0


# ------------------------------------------------------------------------------------------------ taking turns
def tiny_task(recipe: Recipe = Recipe(warmup=0)) -> tuple[GPT, GPTData]:
    torch.manual_seed(0)
    data = GPTData(random_corpus(50, 4000), 8, 4, random_tokenizer(50))
    return GPT(Config(**TINY, causal=True, max_len=8), 50, recipe), data


def test_turns():
    module, data = tiny_task()
    order: list[str] = []

    def rival(_):
        while True:
            order.append("rival")
            yield

    class Note(transformer.L.Callback):
        def on_train_batch_start(self, *_):
            order.append("ours")

    take_turns = TakeTurns({"rival": rival}, block=2, warm_up=2)
    turns.fit(module, data, [Note(), take_turns], 6, accelerator="cpu")
    assert order == (["ours"] * 2 + ["rival"] * 2) * 3
    assert {name: len(seconds) for name, seconds in take_turns.seconds.items()} == {"ours": 2, "rival": 2}  # the first warms up


def test_bare_loop_takes_the_steps_of_the_trainer():
    """With a constant learning rate both end on the same weights after equally many steps."""
    module, data = tiny_task(Recipe(warmup=0, final_lr=1.0, weight_decay=0.0))
    bare = deepcopy(module.model)
    seconds = turns.compete(module, data, {"bare loop": (bare, peers.loss_of_all_logits)}, 2, 3, accelerator="cpu")
    assert [len(samples) for samples in seconds.values()] == [3, 3]
    for ours, theirs in zip(module.model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_windows_and_mean_nats():
    inputs, targets = shakespeare.windows(torch.arange(12), 3)
    assert inputs.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]] and torch.equal(targets, inputs + 1)
    module, data = tiny_task()
    held_out = shakespeare.windows(data.test, 8)
    expected = nn.functional.cross_entropy(module.model(held_out[0]).flatten(0, 1), held_out[1].flatten()).item()
    assert shakespeare.mean_nats(module, *held_out) == pytest.approx(expected, rel=1e-5)
    assert module.training


def test_watch_notes_the_first_time_below_the_target():
    module, data = tiny_task()
    held_out = shakespeare.windows(data.test, 8)
    never, at_once = Watch(*held_out, first=4, every=2, target=0.0), Watch(*held_out, first=4, every=2, target=99.0)
    turns.fit(module, data, [never, at_once], 7, accelerator="cpu")
    assert never.reached is None and at_once.reached_step == 4
    assert 0 < at_once.reached < at_once.seconds and math.isfinite(never.loss)


# ------------------------------------------------------------------------------------------------ the whole
@pytest.fixture
def measured(monkeypatch):
    """A machine whose first measurement finds 1 GFLOP/s, the next one 2, and so on; and 1 GB/s every time."""
    monkeypatch.setattr(Machine, "measure", lambda self: self.__dict__.update(flops=self.flops + 1e9, bandwidth=1e9))


def test_report(tmp_path, monkeypatch, capsys, measured):
    page = tmp_path / "README.md"
    page.write_text("Before.\n\n<!-- benchmark -->\nold\n<!-- end of benchmark -->\n\nAfter.\n", encoding="utf-8")
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "git", lambda *words: {"rev-parse": "abc1234", "status": ""}[words[0]])
    # The row is printed before the run has updated its floors.
    made_up = lambda: Row("import", "work", "other", [1.0], [2.0], (1e9, 1e9), aim={"share": 0.9})  # noqa: E731
    monkeypatch.setitem(command.GROUPS, "import", lambda run: [run.add(made_up()) for _ in range(2)])
    command.main(["--quick", "--readme", "--rows", "import", "shakespeare", "gpu", "--out", str(tmp_path / "b.json")])
    report = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert report["quick"] and report["versions"]["torch"] == torch.__version__
    assert [kept["name"] for kept in report["rows"]] == ["work"] * 2
    assert [kept["floor"] for kept in report["rows"]] == [1.0, 1.0]  # at the bandwidth
    screen = capsys.readouterr()
    assert "| work | 1.00 s | other: 2.00 s | 0.50" in screen.out and "3 GFLOP/s" in screen.out
    assert "--shakespeare FILE" in screen.err
    assert "/" not in json.dumps(report["machine"]).replace("\\/", "")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Before.\n\n<!-- benchmark -->\n### ") and text.endswith("<!-- end of benchmark -->\n\nAfter.\n")
    rows = screen.out.strip().splitlines()[:-1]  # the last line names the seconds, which are a little more by then
    assert "Measured at commit abc1234.\n\n" + "\n".join(rows) in text


def test_a_run_erases_no_other_machines_results(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("<!-- benchmark -->\n<!-- end of benchmark -->\n", encoding="utf-8")
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "git", lambda *words: "changed.py" if words[0] == "status" else "abc1234")
    facts = {"threads": 2, "flops_per_second": 1e9, "bytes_per_second": 1e9}
    for cpu, seconds in (("Intel Xeon", 3.0), ("AMD EPYC", math.inf), ("Intel Xeon", 4.0)):
        kept = row(ours=[seconds], theirs=[2.0]).to_json()
        command.keep({"machine": facts | {"cpu": cpu}, "versions": {}, "seconds": 5.0, "rows": [kept]})
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"### (.*)", text) == ["AMD EPYC, 2 threads", "Intel Xeon, 2 threads"]
    assert "| work | never |" in text and "| work | 4.00 s |" in text and "3.00 s" not in text
    assert text.count("abc1234 with changes.") == 2
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "amd-epyc-2-threads.json", "intel-xeon-2-threads.json"
    ]  # fmt: skip


def test_the_page_has_a_place_for_the_table():
    text = command.PAGE.read_text(encoding="utf-8")
    assert text.index("<!-- benchmark -->\n") < text.index("<!-- end of benchmark -->")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (command.PAGE.parent / target).exists(), target


def tiny_tasks() -> dict:
    model = replace(transformer.GPT2, **TINY, max_len=8), 50, Recipe()

    def build(device: str = "cpu"):
        with torch.device(device):
            module = GPT(*model)
        return module, tiny_task()[1]

    return {"GPT": ("tiny GPT", build)}


def test_training_rows_on_tiny_sizes(monkeypatch):
    monkeypatch.setattr(training, "LARGE_TASKS", tiny_tasks())
    run = Run(True, Machine(CPU, 1e9, 1e12))
    monkeypatch.setattr(Machine, "measure", lambda self: None)
    monkeypatch.setattr(training, "has_bfloat16", lambda device: False)
    training.training(run)
    run.update_floors()
    assert [row.peer for row in run.rows] == ["transformers", "transformers, GELU of PyTorch"]
    for row in run.rows:
        assert len(row.ours) == len(row.theirs) == 4 and row.floor == row.work[0] / 1e9
    assert all(row.must and row.aim for row in run.rows)


def test_rows_in_bfloat16_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(training, "LARGE_TASKS", tiny_tasks())
    monkeypatch.setattr(Machine, "measure", lambda self: None)
    monkeypatch.setattr(training, "has_bfloat16", lambda device: True)
    seen = []

    def watched(model, inputs, targets):
        seen.append(torch.is_autocast_enabled("cpu"))
        return peers.loss_by_transformers(model, inputs, targets)

    monkeypatch.setattr(training, "peers", lambda kind, model: {"transformers": (lambda: peers.transformers_model(model), watched)})
    run = Run(True, Machine(CPU, 1e9, 1e12))
    training.training(run)
    half = [row for row in run.rows if "bfloat16" in row.name]
    assert [row.peer for row in half] == ["transformers, bfloat16", "transformers, float32"]
    assert [row.must["ratio"] for row in half] == [0.95, 0.6]
    assert seen.count(True) == 12 and seen.count(False) == 24  # 4 turns and 8 to warm up; twice in float32


@pytest.mark.parametrize("who", ["ours", "transformers"])
def test_a_child_prints_its_memory_before_and_after(who, monkeypatch, capsys):
    monkeypatch.setattr(processes, "LARGE_TASKS", tiny_tasks())
    command.main(["--child", "GPT", who])
    before, after = json.loads(capsys.readouterr().out)
    assert 0 < before <= after


def test_memory_rows_subtract_what_the_imports_take(monkeypatch):
    asked = []

    def child(*arguments: str) -> str:
        asked.append(arguments)
        return "[1048576, 3145728]" if arguments[-1] == "ours" else "[1048576, 5242880]"

    monkeypatch.setattr(processes, "in_new_process", child)
    run = Run(True, Machine(CPU))
    processes.memory(run)
    assert asked == [("-m", "utils.benchmark", "--child", "GPT", who) for who in ("ours", "transformers")]
    assert "| 2 MiB | transformers: 4 MiB | 0.50" in table(run.rows)


def test_a_process_that_fails_is_named():
    assert processes.in_new_process("-c", "print(1); print(2)") == "2"
    with pytest.raises(RuntimeError, match="(?s)python -c 1 / 0: .*ZeroDivisionError"):
        processes.in_new_process("-c", "1 / 0")
