"""Short ways to write scenarios and to look at traces."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from campaign.corpus import CHECKOUT
from reference_impl.scenario import Operation, Scenario, designs_of, operation, scenario
from reference_impl.trace import Kind, Phase, Record, Trace

PLATFORM_DESIGNS = designs_of("platform")
CORRECT_DESIGNS = ("exit-callback", "reference-count")

CONNECT = operation("connect")
EXIT = operation("exit")
STALE_EXIT = operation("exit", map_key="stale")
STOP_BUS = operation("disconnect", controller="bus")


def platform(design: str, *operations: Operation, devices: Iterable[str] = (), **values: Any) -> Scenario:
    """A scenario of the platform world."""
    return scenario(design=design, operations=operations, devices=tuple(devices), **values)


def hostile(design: str, *operations: Operation, switches: Iterable[str] = (), **values: Any) -> Scenario:
    """A scenario of the platform world in the hostile environment."""
    return platform(design, *operations, environment="hostile", switches=tuple(sorted(switches)), **values)


def records(trace: Trace, kind: Kind, name: str | None = None, phase: Phase | None = None) -> list[Record]:
    """The records of one kind, in order."""
    return [
        record
        for record in (Record(*plain) for plain in trace.records)
        if record.kind == kind and name in (None, record.name) and phase in (None, record.phase)
    ]


class Shown(NamedTuple):
    """A scenario on a page of the docs: the regression that it is, the beginning of a signature, and the two blocks."""

    regression: str
    signature: str
    scenario: str
    timeline: str


def shown_in(page: str, target: str) -> list[Shown]:
    """The scenarios of a page in `docs/` that are regressions of a target, in order."""
    return [
        Shown(*found)
        for found in re.findall(
            rf"`corpus/{target}/regressions/([\w-]+)\.yaml`, `([^`]+)`:\n\n```yaml\n(.*?)```\n\n```\n(.*?)```\n",
            (CHECKOUT / "docs" / page).read_text(encoding="utf-8"),
            re.DOTALL,
        )
    ]
