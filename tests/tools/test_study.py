"""The study of what the preset `auto` reaches: its data, its runs and its table."""

import json

from utils.data.images import load_images
from utils.maintenance import study


def test_letters_are_five_thousand_pictures_in_ten_classes(tmp_path, monkeypatch):
    study.write_letters(tmp_path / "letters", n=12)
    found = load_images(tmp_path / "letters", 32)
    assert len(found.classes) == 10 and found.train[0].shape[1:] == (3, 32, 32)
    assert len(found.train[1]) + len(found.validation[1]) + len(found.test[1]) == 120


def test_a_finished_run_is_not_repeated_and_the_table_has_the_means(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    calls = []
    monkeypatch.setattr(study.subprocess, "run", lambda command, **_: calls.append(command))
    for seed, value in enumerate((2.5, 2.7)):
        folder = tmp_path / f"0-{seed}"
        folder.mkdir()
        summary = {
            "figure": {"name": "bits per byte", "value": value}, "nats_per_character": 1.8, "seconds": 60 + seed,
            "baselines": {"bigram": 3.5, "5-gram": 2.9, "lzma": 3.0},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    for seed in range(3):
        study.train(study.ROWS[0], seed)
    assert len(calls) == 1 and calls[0][-1] == str(tmp_path / "0-2") and "--seed" in calls[0]
    title, _, row, *_ = study.lines()
    assert title.count("|") == row.count("|") == 7
    assert "| 2 | bits per byte 2.600 (2.500 to 2.700), 1.800 nats per character | 5-gram 2.900 |" in row
