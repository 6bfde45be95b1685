"""What was measured, as Markdown. Owns the form of rows, the judgement against a goal; knows no measuring."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Row:
    """One measured thing beside its goal. `met` is "" where nothing was measured or nothing was promised."""

    what: str
    measured: str
    goal: str = ""
    met: str = ""


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing: the one in the middle, and how sure it is.

    `margin`: 1.57 x the middle half / sqrt(n), about 95 % sure (McGill, Tukey, Larsen: Variations of Box Plots, 1978).
    """

    median: float
    margin: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; of one value nothing is sure."""
        if len(values) == 1:
            return cls(values[0], math.inf)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, 1.57 * (high - low) / math.sqrt(len(values)))

    def percent_more(self) -> str:
        """Of ratios: how much more than 1, for people."""
        return f"{100 * (self.median - 1):+.1f} % ± {100 * self.margin:.1f}"

    def at_most(self, most: float) -> str:
        """Whether it is: "yes", "NO", or "unclear" where the margin reaches over the bound."""
        if abs(self.median - most) < self.margin:
            return "unclear"
        return verdict(good=self.median <= most)


def verdict(*, good: bool) -> str:
    """A word that is found when it is bad."""
    return "yes" if good else "NO"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all do not exceed (nearest rank: a value that was measured)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def ratios(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Of pairs (without, with), each measured one right after the other."""
    return [watched / alone for alone, watched in pairs]


def at_most(what: str, measured: float | str, goal: tuple[float, str], *, digits: int = 0, more: str = "") -> Row:
    """A row whose goal is an upper bound in a unit. A text instead of a number says why nothing was measured."""
    most, unit = goal
    bound = f"<= {most:g} {unit}"
    if isinstance(measured, str):
        return Row(what, f"not measured: {measured}", bound)
    text = f"{measured:.{digits}f} {unit}"
    return Row(what, f"{text} ({more})" if more else text, bound, verdict(good=measured <= most))


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns are padded so that it reads well unrendered too."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(padded) + "\n"


def goals(rows: Sequence[Row]) -> str:
    """The table of measurements beside their goals."""
    return markdown(("what", "measured", "goal", "met"), [(row.what, row.measured, row.goal, row.met) for row in rows])
