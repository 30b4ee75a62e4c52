"""The JSON files beside the weights: config.json and the settings of tokenisers and image transforms."""

from __future__ import annotations

import json
from pathlib import Path

from transformer import require


def read_json(path: Path) -> dict:
    """Return the JSON object in a file. Raises ValueError where the file holds anything else."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be JSON ({error})") from error
    require(isinstance(contents, dict), str(path), type(contents).__name__, "a JSON object")
    return contents


def write_json(path: Path, contents: dict) -> None:
    """Write a JSON object to a file, indented for people to read."""
    path.write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
