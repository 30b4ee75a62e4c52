"""Make a study again: `python -m utils.studies house`.

Its results go to results/NAME.json in this folder, with the machine, the versions, the seeds and the command.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import sys
import time
from pathlib import Path

from utils.files import write_text
from utils.lessons import notebook as lesson
from utils.machine import device_name, versions
from utils.studies import common, draws, house, parts, probes, scaling
from utils.studies.results import RESULTS

STUDIES = {"house": house, "draws": draws, "probes": probes, "scaling": scaling, "parts": parts}


def code_hash(name: str) -> str:
    """SHA-256 of the code of a study without its comments, by which the tests see that its results are not older."""
    code = [ast.unparse(ast.parse(inspect.getsource(module))) for module in (STUDIES[name], common)]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def main(arguments: list[str] | None = None) -> dict:
    """Run one study, write its results, and return them."""
    parser = argparse.ArgumentParser("python -m utils.studies", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many")
    parser.add_argument("--fast", action="store_true", help="tiny models and a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="instead of results/NAME.json")
    options = parser.parse_args(arguments)
    lesson.choose_scale("small")
    began = time.perf_counter()
    study = STUDIES[options.name].study
    results = study(list(range(options.seeds)), options.fast, lambda line: print(line, file=sys.stderr, flush=True))
    about = {
        "command": f"python -m utils.studies {options.name} --seeds {options.seeds}" + " --fast" * options.fast,
        "seeds": options.seeds,
        "seconds": round(time.perf_counter() - began),
        "device": device_name(),
        "versions": versions("torch", "lightning", "numpy"),
        "code_sha256": code_hash(options.name),
    }
    text = json.dumps(about | {"results": results}, indent=1, ensure_ascii=False) + "\n"
    RESULTS.mkdir(exist_ok=True)
    write_text(options.out or RESULTS / f"{options.name}.json", text)
    return about | {"results": results}


if __name__ == "__main__":
    main()
