"""One run of the benchmark: its settings, and the rows that it has measured so far."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from utils.benchmark.limits import Machine
from utils.benchmark.table import Row, table


@dataclass
class Run:
    """What every group of rows needs to know, and where it puts its rows."""

    quick: bool  # fewer turns and fewer peers
    machine: Machine
    shakespeare: Path | None = None  # the file with the text
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep the row and print it. Its floor is computed from the machine's best rates so far."""
        self.rows.append(row)
        if row.work is not None:
            if not self.machine.flops:
                self.machine.measure()
            row.floor = self.machine.floor(*row.work)
        print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)

    def update_floors(self) -> None:
        """Measure the machine again, and compute the floors of all rows from its best rates in this run."""
        self.machine.measure()
        for row in self.rows:
            if row.work is not None:
                row.floor = self.machine.floor(*row.work)
