"""What became slower than noise allows, between the committed rows of a machine and those of a new run."""

from __future__ import annotations

from dataclasses import dataclass

from _common import Row
from _tables import markdown_table

LEAST_CHANGE = 0.10  # smaller ones come and go with the state of a machine, however quiet it is
SPREADS = 3


@dataclass(frozen=True)
class Change:
    """A row, before and now."""

    before: Row
    now: Row

    @property
    def worse_by(self) -> float:
        """By which part it got worse, negative if it got better."""
        smaller, larger = sorted((self.before.measured, self.now.measured))
        ratio = larger / smaller if smaller > 0 else float("inf") if larger > 0 else 1.0
        got_larger = self.now.measured > self.before.measured
        return ratio - 1 if got_larger == (self.now.better == "smaller") else 1 / ratio - 1

    @property
    def allowed(self) -> float:
        """What noise may do: three spreads of the noisier run, and never less than a tenth."""
        return max(LEAST_CHANGE, SPREADS * max(self.before.spread, self.now.spread))

    @property
    def is_slower(self) -> bool:
        """Whether the row got worse by more than that."""
        return self.worse_by > self.allowed

    def cells(self) -> list[str]:
        """The line of a printed table."""
        return [
            f"{self.now.topic}: {self.now.name}",
            *(f"{row.measured:.3g}{row.unit}" for row in (self.before, self.now)),
            f"{self.worse_by:+.0%}",
            f"{self.allowed:.0%}",
        ]


def changes(before: list[Row], now: list[Row]) -> list[Change]:
    """The rows that both runs have, in the order of the new one."""
    known = {(row.topic, row.name): row for row in before}
    return [Change(known[row.topic, row.name], row) for row in now if (row.topic, row.name) in known]


def verdict(before: list[Row], now: list[Row]) -> str:
    """The rows that became slower as a table, and how many were compared, in words."""
    compared = changes(before, now)
    slower = [change for change in compared if change.is_slower]
    lines = [f"{len(slower)} of {len(compared)} rows became slower than noise allows"]
    for name, missing in (("are not in the baseline", len(now)), ("were not measured", len(before))):
        if missing > len(compared):
            lines.append(f"{missing - len(compared)} rows {name}")
    if slower:
        header = ["what", "baseline", "now", "worse by", "allowed"]
        lines.append(markdown_table(header, [change.cells() for change in slower]))
    return "\n".join(lines)
