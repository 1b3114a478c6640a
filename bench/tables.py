"""A report for people: text for a terminal, Markdown for the README."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report import Goal, Report, Row

__all__ = ["markdown", "text"]

_GOALS = ("goal", "limit", "reached", "met")


def text(report: Report) -> str:
    """Every row, the goals, the isolation side by side, who is absent."""
    parts = ["\n".join(f"{name}: {value}" for name, value in report.facts.items())]
    sections = dict.fromkeys(row.section for row in report.rows)
    rows = [_cells(row) for section in sections for row in report.rows if row.section == section]
    if rows:
        parts.append(_aligned([("figure", "", "median", "p95", "n", "ratio", "to"), *_without_repeats(rows)]))
    if report.isolation:
        parts.append(_aligned(_isolation(report)))
    if report.absent:
        parts.append("not measured:\n" + "\n".join(f"  {name}: {why}" for name, why in report.absent.items()))
    if report.goals:
        parts.append(_aligned([_GOALS, *(_goal_cells(goal) for goal in report.goals)]))
    return "\n\n".join(parts)


def markdown(report: Report) -> str:
    """For the README, between its markers: goals and what the ratios are made from."""
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
    parts = [f"{facts}.", _piped([("figure", "goal", "reached", "met"), *map(_goal_cells, report.goals)])]
    rows = [_cells(row) for row in report.rows]
    parts.append(_piped([("figure", "", "median", "p95", "n", "ratio", "to"), *_without_repeats(rows)]))
    if report.isolation:
        parts.append(_piped(_isolation(report)))
    return "\n\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.section,
        row.name,
        f"{_number(row.median)} {row.unit}",
        _number(row.p95) if row.p95 is not None else "",
        str(row.count),
        _number(row.ratio) if row.ratio is not None else "",
        row.against or "",
    )


def _goal_cells(goal: Goal) -> tuple[str, ...]:
    unit = f" {goal.unit}" if goal.unit else ""
    verdict = {True: "yes", False: "no", None: "not measured"}[goal.met]
    reached = f"{_number(goal.reached)}{unit}" if goal.reached is not None else "-"
    return goal.name, f"{'at least' if goal.at_least else 'at most'} {goal.limit:g}{unit}", reached, verdict


def _isolation(report: Report) -> list[tuple[str, ...]]:
    names = list(report.isolation)
    what = dict.fromkeys(key for shown in report.isolation.values() for key in shown)
    return [
        ("seen from inside", *names),
        *((key, *(report.isolation[name].get(key, "-") for name in names)) for key in what),
    ]


def _number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _without_repeats(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    before = [None, *(row[0] for row in rows)]
    return [("" if row[0] == last else row[0], *row[1:]) for row, last in zip(rows, before, strict=False)]


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def _piped(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])
