"""A row of the benchmark, and the table of rows in Markdown."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from statistics import median, quantiles


@dataclass
class Row:
    """What we and one peer needed for the same work, turn by turn.

    must and aim are limits by name: `ratio` (ours / the peer's, at most), `ours` (at most) and `share` (floor / ours,
    at least). `must` was set as necessary, `aim` as desirable.
    """

    group: str
    name: str
    peer: str
    ours: list[float]
    theirs: list[float]
    work: tuple[float, float] | None = None  # FLOPs and bytes
    floor: float | None = None  # the least seconds for `work` on this machine
    must: dict[str, float] = field(default_factory=dict)
    aim: dict[str, float] = field(default_factory=dict)
    unit: str = "s"  # or "bytes"
    note: str = ""

    def ratios(self) -> list[float]:
        """Ours / the peer's in each turn: what slows the machine down in a turn, slows both."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    def figures(self) -> dict[str, float]:
        """The medians that the limits apply to, under the names of the limits."""
        figures = {"ratio": median(self.ratios()), "ours": median(self.ours)}
        if self.floor is not None:
            figures["share"] = self.floor / figures["ours"]
        return figures

    def holds(self, limits: dict[str, float]) -> bool | None:
        """Whether all the limits are kept; None if there are none."""
        figures = self.figures()
        kept = [figures[name] >= limit if name == "share" else figures[name] <= limit for name, limit in limits.items()]
        return all(kept) if kept else None

    def to_json(self) -> dict:
        """The row with all its samples, their medians and quartiles; infinity, which JSON lacks, becomes None."""
        spreads = {"ours": spread(self.ours), "theirs": spread(self.theirs), "ratio": spread(self.ratios())}
        verdicts = {"must_holds": self.holds(self.must), "aim_holds": self.holds(self.aim)}
        row = asdict(self) | {"spread": spreads} | verdicts
        return json.loads(json.dumps(row), parse_constant=lambda _: None)


def row_of(saved: dict) -> Row:
    """The row that `to_json` saved."""
    values = {name: saved[name] for name in (part.name for part in fields(Row))}
    for name in ("ours", "theirs"):
        values[name] = [math.inf if seconds is None else seconds for seconds in values[name]]
    return Row(**values)


def pages(reports: list[dict]) -> str:
    """The tables of several machines, each under its name."""
    parts = []
    for report in sorted(reports, key=machine_name):
        rows = [row_of(saved) for saved in report["rows"]]
        title = f"### {machine_name(report)}\n\nMeasured at commit {report['commit']}."
        parts.append(f"{title}\n\n{table(rows)}\n\n{summary(report)}")
    return "\n\n".join(parts)


def machine_name(report: dict) -> str:
    """The GPU or the processor, and how many threads."""
    machine = report["machine"]
    return f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads"


def spread(samples: list[float]) -> dict[str, float]:
    """The median and the quartiles of the samples, and how many there are."""
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return {"median": median(samples), "low": low, "high": high, "n": len(samples)}


def amount(value: float, unit: str) -> str:
    """A value in words: MiB for bytes; s, ms or µs with three digits for seconds; infinity is "never"."""
    if value == math.inf:
        return "never"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    scale, name = next(((s, n) for s, n in ((1, "s"), (1e-3, "ms")) if value >= s), (1e-6, "µs"))
    value /= scale
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1))))}f} {name}"


def verdict(row: Row, limits: dict[str, float]) -> str:
    """The limits in words, and whether they are kept; nothing if there are none."""
    if not limits:
        return ""
    forms = {"ratio": "ratio ≤ {:.3g}", "ours": "≤ {}", "share": "floor / ours ≥ {:.0%}"}
    texts = [forms[name].format(amount(v, row.unit) if name == "ours" else v) for name, v in limits.items()]
    return ", ".join(texts) + (": yes" if row.holds(limits) else ": **no**")


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown, and their notes below it."""
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
            verdict(row, row.must),
            verdict(row, row.aim),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    notes = dict.fromkeys(f"- {row.name}: {row.note}." for row in rows if row.note)
    return "\n".join([*lines, "", *notes] if notes else lines)


def summary(report: dict) -> str:
    """One line for below the table: the machine with its rates, the versions, and how long the run took."""
    machine, packages = report["machine"], ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    rates = f"{machine['flops_per_second'] / 1e9:.0f} GFLOP/s, {machine['bytes_per_second'] / 1e9:.1f} GB/s"
    return f"{machine_name(report)}, {rates}; {packages}; {report['seconds']:.0f} s"
