"""The arithmetic: medians, percentiles, ratios."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Samples", "percentile", "ratio"]


def percentile(values: Sequence[float], percent: float) -> float:
    """With linear interpolation between the neighbours (as Excel's PERCENTILE.INC). Raises: ValueError if empty."""
    if not values:
        raise ValueError("no values: a percentile needs one at least")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent {percent}: must be 0 to 100")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """None where either was not measured."""
    if ours is None or theirs is None or theirs <= 0:
        return None
    return ours / theirs


@dataclass(frozen=True)
class Samples:
    """Measurements of one thing in one unit."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Samples:
        return cls(tuple(values))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def median(self) -> float:
        return percentile(self.values, 50)

    @property
    def p95(self) -> float:
        return percentile(self.values, 95)

    @property
    def p5(self) -> float:
        return percentile(self.values, 5)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)
