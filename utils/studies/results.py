"""The results of the studies, as they are kept beside their code."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


def read(name: str) -> dict:
    """Return what a study found (`results`), and the command, seeds, machine and versions that it was found with.

    Prints these in one line. Raises FileNotFoundError for a study that has no results.
    """
    kept = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    minutes = kept["seconds"] / 60
    print(f"{kept['command']}: {kept['seeds']} seeds, {minutes:.0f} minutes on {kept['device']}")
    return kept
