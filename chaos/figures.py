"""What all the rounds of a run showed, and the README's section of it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.ledger import Ledger, Violation

__all__ = ["Figures", "write_readme"]

BEGIN, END = "<!-- chaos:begin -->", "<!-- chaos:end -->"


@dataclass
class Figures:
    """Sums over the rounds."""

    seed: int
    containers: int
    tried: int  # faults in each round
    at_once: int
    rounds: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    exits: int = 0
    lines: int = 0
    unknowns: int = 0
    violations: list[Violation] = field(default_factory=list)

    def add(self, ledger: Ledger, violations: list[Violation]) -> None:
        """One round more."""
        self.rounds += 1
        self.faults += ledger.faults
        self.answers += ledger.answers
        self.refusals += ledger.refusals
        self.runs += ledger.runs
        self.exits += ledger.exits
        self.lines += ledger.lines
        self.unknowns += ledger.unknowns
        self.violations += violations

    def text(self) -> str:
        """For the terminal."""
        lines = [
            f"{self.rounds} rounds in {self.seconds:.0f} s, {sum(self.faults.values())} faults, "
            f"{len(self.violations)} violations (seed {self.seed})",
            f"{self.runs} runs, {self.exits} exits compared ({self.unknowns} unknown), {self.lines} lines of output",
            "faults: " + _listed(self.faults),
            "verbs: " + _listed(self.answers),
            "refused, each with an error of its own: " + _listed(self.refusals),
        ]
        return "\n".join(lines + [f"VIOLATION {one}" for one in self.violations])

    def plain(self) -> dict[str, Any]:
        """For a file."""
        return {
            **{name: value for name, value in vars(self).items() if name != "violations"},
            "violations": [vars(one) for one in self.violations],
        }


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def write_readme(readme: Path, figures: Figures) -> None:
    """Put the figures between the markers."""
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"{readme}: no {BEGIN} and {END}")
    rows = "\n".join(f"| {name} | {count} |" for name, count in figures.faults.most_common())
    command = (
        f"--rounds {figures.rounds} --containers {figures.containers} --faults {figures.tried} "
        f"--at-once {figures.at_once} --seed {figures.seed}"
    )
    section = (
        f"\n{sum(figures.faults.values()):,} faults in {figures.rounds:,} rounds with {figures.containers} containers "
        f"each: **{len(figures.violations)} violations**. Compared were {figures.exits:,} exits, of which "
        f"{figures.unknowns:,} were `unknown` because the keeper itself had been killed, and {figures.lines:,} lines "
        f"of output, each there once.\n\n| fault | times |\n| --- | --- |\n{rows}\n\n"
        f'({time.strftime("%Y-%m-%d")}, `make chaos ARGS="{command}"`, '
        f"{figures.seconds / 60:.0f} minutes on 2 cores)\n"
    )
    readme.write_text(f"{before}{BEGIN}{section}{END}{after}")
