"""The rows of the benchmark: ours beside a peer, what was set out to reach, and the table of it all."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles


@dataclass
class Row:
    """Ours and one peer on the same work, turn by turn.

    must, aim: limits by name: `ratio` (ours / the peer's, at most), `ours` (at most), `share` (floor / ours, at least).
    """

    group: str
    name: str
    peer: str
    ours: list[float]
    theirs: list[float]
    work: tuple[float, float] | None = None  # FLOPs and bytes
    floor: float | None = None  # seconds for that work, once the run has seen the machine's best rates
    must: dict[str, float] = field(default_factory=dict)
    aim: dict[str, float] = field(default_factory=dict)
    unit: str = "s"  # or bytes
    note: str = ""

    def ratios(self) -> list[float]:
        """Turn by turn: what changes from one turn to the next, changes both."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    def figures(self) -> dict[str, float]:
        """What the limits are about."""
        figures = {"ratio": median(self.ratios()), "ours": median(self.ours)}
        return figures if self.floor is None else figures | {"share": self.floor / figures["ours"]}

    def holds(self, limits: dict[str, float]) -> bool | None:
        """Whether all limits are kept; None where there are none."""
        figures = self.figures()
        kept = [figures[n] >= limit if n == "share" else figures[n] <= limit for n, limit in limits.items()]
        return all(kept) if kept else None

    def to_json(self) -> dict:
        sums = {"ours": spread(self.ours), "theirs": spread(self.theirs), "ratio": spread(self.ratios())}
        row = asdict(self) | {"spread": sums, "must_holds": self.holds(self.must), "aim_holds": self.holds(self.aim)}
        return json.loads(json.dumps(row), parse_constant=lambda _: None)  # JSON has no infinity


def spread(samples: list[float]) -> dict[str, float]:
    """Median and quartiles of the samples, and how many there are."""
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return {"median": median(samples), "low": low, "high": high, "n": len(samples)}


def amount(value: float, unit: str) -> str:
    """Three digits with a unit that suits them."""
    if value == math.inf:
        return "never"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    scale, name = next(((s, n) for s, n in ((1, "s"), (1e-3, "ms")) if value >= s), (1e-6, "µs"))
    value /= scale
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1))))}f} {name}"


def limits(row: Row, which: dict[str, float]) -> str:
    """The limits in words, and whether they are kept."""
    words = {"ratio": "ratio ≤ {:.3g}", "ours": "≤ {}", "share": "floor / ours ≥ {:.0%}"}
    texts = [words[n].format(amount(v, row.unit) if n == "ours" else v) for n, v in which.items()]
    return ", ".join(texts) + (": yes" if row.holds(which) else ": **no**") if texts else ""


def table(rows: list[Row]) -> str:
    """The rows in Markdown, their notes below."""
    lines = ["| | ours | peer | ratio (quartiles) | floor | must | aim |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ratio, figures = spread(row.ratios()), row.figures()
        floor = f"{amount(row.floor, row.unit)}, {figures['share']:.0%} of our time" if row.floor else ""
        digits = ".2f" if ratio["median"] >= 0.1 else ".2g"
        cells = [
            row.name,
            amount(figures["ours"], row.unit),
            f"{row.peer}: {amount(median(row.theirs), row.unit)}",
            f"{ratio['median']:{digits}} ({ratio['low']:{digits}} to {ratio['high']:{digits}})",
            floor,
            limits(row, row.must),
            limits(row, row.aim),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {row.name}: {row.note}." for row in rows if row.note]
    return "\n".join(lines + [""] * bool(notes) + list(dict.fromkeys(notes)))


def summary(report: dict) -> str:
    """What the table was measured on, in a line or two."""
    machine, packages = report["machine"], ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    rates = f"{machine['flops_per_second'] / 1e9:.0f} GFLOP/s, {machine['bytes_per_second'] / 1e9:.1f} GB/s"
    where = f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, {rates}"
    return f"{where}; {packages}; {report['seconds']:.0f} s"
