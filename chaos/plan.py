"""What will be tried in one round, decided before it begins: the same seed and round give the same decisions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from chaos.programs import ENDLESS, FINITE

__all__ = ["FAULTS", "Plan", "Step", "make_plan"]

# Kind of fault to its weight.
FAULTS = {
    "kill engine": 14,
    "kill keeper": 7,
    "kill both": 3,
    "reboot": 3,
    "kill runtime": 18,
    "kill init": 22,
    "stop reader": 7,
    "kill reader": 5,
    "stop engine": 4,
    "stop keeper": 4,
    "upgrade": 6,
    "upgrade keeper": 6,
    "fill disk": 5,
    "hang runtime": 4,
}
_VERBS = {
    "create": 16,
    "start": 10,
    "stop": 9,
    "kill": 6,
    "pause": 5,
    "resume": 6,
    "exec": 10,
    "wait": 6,
    "logs": 4,
    "follow": 5,
    "remove": 6,
    "run": 6,
    "restart": 4,
    "policy": 2,
}
_POLICIES = ("no", "no", "no", "on-failure:3", "always", "unless-stopped", "on-failure")


@dataclass(frozen=True)
class Step:
    """One decision.

    Attributes:
        after_s: how long after the step before. fault, verb: one of the two.
        slot: which container the verb is for. dice: numbers from 0 to 1 for what depends on the moment.
    """

    after_s: float
    fault: str | None
    verb: str
    slot: int
    kind: str
    code: int
    lines: int
    policy: str
    dice: tuple[float, float, float]


@dataclass(frozen=True)
class Plan:
    """One round: on a small disk or not, with a runtime that can hang or not, on which runtime."""

    small_disk: bool
    can_hang: bool
    runtime: str
    steps: tuple[Step, ...]


def make_plan(seed: int, number: int, faults: int, containers: int, runtimes: tuple[str, ...]) -> Plan:
    """Round `number` with that many faults, on that many containers."""
    dice = random.Random(f"{seed}/{number}")
    small_disk, can_hang = dice.random() < 0.4, dice.random() < 0.25
    runtime = runtimes[0] if dice.random() < 0.75 else dice.choice(runtimes)
    weights = dict(FAULTS)
    if not small_disk:
        del weights["fill disk"]
    if not can_hang:
        del weights["hang runtime"]
    steps: list[Step] = [_step(dice, "", "create", slot) for slot in range(containers)]
    left = faults
    while left:
        fault = dice.choices(list(weights), list(weights.values()))[0] if dice.random() < 0.3 else ""
        verb = dice.choices(list(_VERBS), list(_VERBS.values()))[0]
        steps.append(_step(dice, fault, verb, dice.randrange(containers)))
        left -= bool(fault)
    return Plan(small_disk=small_disk, can_hang=can_hang, runtime=runtime, steps=tuple(steps))


def _step(dice: random.Random, fault: str, verb: str, slot: int) -> Step:
    return Step(
        after_s=min(dice.expovariate(1 / 0.05), 0.5),
        fault=fault or None,
        verb=verb,
        slot=slot,
        kind=dice.choice(FINITE if dice.random() < 0.55 else ENDLESS),
        code=dice.choice((0, 0, 1, 2, 42, 126, 137, 143, 255, dice.randrange(256))),
        lines=dice.choice((1, 100, 1000, 3000)),
        policy=dice.choice(_POLICIES),
        dice=(dice.random(), dice.random(), dice.random()),
    )
