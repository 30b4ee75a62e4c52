"""What the preset `auto` reaches on texts and pictures: `make study`, or `python -m utils.maintenance.study`.

    python -m utils.maintenance.study [--seeds 3] [WORDS ...]      # WORDS: only rows that contain one of them

Each run is kept in runs/study and not repeated. The table of all finished runs is written into the README.md of
utils/training. Rows that start from a trained model need runs/gpt and runs/bert of `make demo`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont

from utils.data.text import shakespeare
from utils.files import ROOT, write_between_marks
from utils.machine import device_name

FOLDER = ROOT / "runs" / "study"
README = ROOT / "utils" / "training" / "README.md"

# What a row is called, the model, the data, the other options, and what an accuracy or bits per byte has to beat.
ROWS = [
    ("English text of 65 kB", "gpt", "english-65.txt", "", "5-gram"),
    ("English text of 164 kB", "gpt", "english-164.txt", "", "5-gram"),
    ("the same, from `runs/gpt`", "gpt", "english-164.txt", "--pretrained runs/gpt", "lzma"),
    ("Shakespeare", "gpt", "shakespeare", "", "5-gram"),
    ("Shakespeare, refit", "gpt", "shakespeare", "--refit", "5-gram"),
    ("photographs", "vit", "pizza-steak-sushi", "", "logistic regression"),
    ("5,000 small colour pictures", "vit", "letters", "", "logistic regression"),
    ("film reviews", "bert", "movie-reviews", "", "TF-IDF, logistic regression"),
    ("the same, from `runs/bert`", "bert", "movie-reviews", "--pretrained runs/bert", "TF-IDF, logistic regression"),
]


def write_data(folder: Path) -> None:
    """Write the texts and pictures that are nobody's data set: slices of Shakespeare, and coloured letters."""
    text = shakespeare().train
    for name, length in {"english-65.txt": 65_000, "english-164.txt": 164_000}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text[300_000 : 300_000 + length], encoding="utf-8")
    if not (folder / "letters").is_dir():
        write_letters(folder / "letters")


def write_letters(folder: Path, n: int = 500) -> None:
    """Write n pictures of each of ten letters: any colours, sizes, places and slants, on a spotted ground."""
    draw = random.Random(0)
    for letter in "ASRKEGMX38":
        (folder / letter).mkdir(parents=True)
        for i in range(n):
            ground, ink = ([draw.randint(0, 255) for _ in range(3)] for _ in range(2))
            while sum(abs(a - b) for a, b in zip(ground, ink, strict=True)) < 150:
                ink = [draw.randint(0, 255) for _ in range(3)]
            picture = Image.new("RGB", (64, 64), tuple(ground))
            for _ in range(draw.randint(2, 6)):
                x, y, size = draw.randint(-10, 60), draw.randint(-10, 60), draw.randint(8, 30)
                colour = tuple(max(0, min(255, level + draw.randint(-60, 60))) for level in ground)
                ImageDraw.Draw(picture).ellipse((x, y, x + size, y + size), fill=colour)
            shape = Image.new("L", (64, 64))
            font = ImageFont.load_default(size=draw.randint(26, 44))
            ImageDraw.Draw(shape).text((32, 32), letter, font=font, fill=255, anchor="mm")
            shape = shape.rotate(draw.uniform(-20, 20), translate=(draw.randint(-8, 8), draw.randint(-8, 8)))
            picture.paste(tuple(ink), mask=shape)
            picture.resize((32, 32)).save(folder / letter / f"{i}.png")


def train(row: tuple, seed: int) -> None:
    """Run one row by the command line of the project, unless it has been run."""
    name, model, data, options, _ = row
    out = FOLDER / f"{ROWS.index(row)}-{seed}"
    if (out / "summary.json").is_file():
        return
    print(f"\n== {name}, seed {seed}", flush=True)
    written = FOLDER / "data" / data
    name = str(written) if written.exists() else data
    command = [sys.executable, str(ROOT / "transformer.py"), model, "--data", name, *options.split()]
    command += ["--seed", str(seed), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)


def lines() -> list[str]:
    """The table of all rows that have finished runs."""
    found = ["| data | seeds | on the test part | what it has to beat | other methods | seconds |", "|---" * 6 + "|"]
    for i, (name, *_, rival) in enumerate(ROWS):
        paths = sorted(FOLDER.glob(f"{i}-*/summary.json"))
        summaries = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if not summaries:
            continue
        values = [summary["figure"]["value"] for summary in summaries]
        shown = f"{summaries[0]['figure']['name']} {fmean(values):.3f}"
        if len(values) > 1:
            shown += f" ({min(values):.3f} to {max(values):.3f})"
        if "nats_per_character" in summaries[0]:
            shown += f", {fmean(summary['nats_per_character'] for summary in summaries):.3f} nats per character"
        baselines = summaries[0]["baselines"]
        others = ", ".join(f"{other} {value:.3f}" for other, value in baselines.items() if other != rival)
        seconds = fmean(summary["seconds"] for summary in summaries)
        beat = f"{rival} {baselines[rival]:.3f}"
        found.append(f"| {name} | {len(values)} | {shown} | {beat} | {others} | {seconds:.0f} |")
    return [*found, "", f"On {device_name()}; in parentheses the lowest and the highest of the seeds."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORDS")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    write_data(FOLDER / "data")
    for seed in range(options.seeds):
        for row in ROWS:
            if not options.words or any(word in row[0] for word in options.words):
                train(row, seed)
    write_between_marks(README, "study", "\n".join(lines()))
    print("\n".join(lines()))


if __name__ == "__main__":
    main()
