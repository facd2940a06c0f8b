"""What anybody would try first in a world, by hand: the opening of a guided run, and the first of the starting corpus.

What is broken altogether shows in one of a handful of plain scenarios, so they come before anything generated, and the
short ones that exercise most come first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from reference_impl.scenario import DEVICE_KINDS, MACHINES, ORDER_FIFO, Scenario, operation, scenario

if TYPE_CHECKING:
    from fuzz_targets.registry import Target

_CONNECT, _EXIT, _STALE = operation("connect"), operation("exit"), operation("exit", map_key="stale")
_REQUEST = operation("request")

OPENING = 6
"""How many come before everything else. The others come with the starting corpus: they show little that these do not."""


def opening(
    target: Target, design: str, fault: str = "", images: tuple[str, ...] = (), environment: str = "conforming"
) -> list[Scenario]:
    """What a run on `target` begins with: the first basic scenarios, with what the run has fixed.

    Where orders are compared, only those that have several drivers to be put in order.
    """
    fixed: dict[str, Any] = {"fault": fault, "images": images, "environment": environment}
    basics = (
        basic for _, basic in basic_scenarios(target.world, design) if not target.shuffles or len(basic.devices) > 1
    )
    return [replace(basic, **fixed) for basic in islice(basics, OPENING)]


def basic_scenarios(world: str, design: str) -> Iterator[tuple[str, Scenario]]:
    """Titles, and scenarios of `world` with `design`; "" where the world has no designs."""
    if world in MACHINES:
        yield from _of_a_machine(world, design)
    elif world == "core":
        services = [operation("call", service=name) for name in ("CreateEvent", "AllocatePool", "RaiseTPL")]
        yield "calls-and-exit", scenario(world="core", operations=(*services, _EXIT))
        yield "stale-key-then-exit", scenario(world="core", operations=(operation("allocate"), _STALE, _EXIT))
    else:
        asks = [operation("ask", request=name) for name in ("READ", "WATCH", "TRANSACTION_START")]
        yield "honest-peer", scenario(world="ring", operations=tuple(asks))
        answers = ("nothing", "error", "wrong-id", "watch-event", "too-long", "cut")
        for what in answers:
            steps = (operation("answer", what=what), operation("ask"))
            yield f"answer-{what}", scenario(world="ring", operations=steps)


def _of_a_machine(world: str, design: str) -> Iterator[tuple[str, Scenario]]:
    disk, two = ("block",), ("block", "network")
    drivers = ("xenbus", *DEVICE_KINDS)
    unloads, loads = ([operation(what, driver=driver) for driver in drivers] for what in ("unload", "load"))
    both = {"world": world, "design": design, "devices": two, "operations": (_CONNECT, _EXIT)}
    yield "fifo", scenario(order=ORDER_FIFO, **both)
    for title, devices, steps in (
        ("stop-start", disk, (_CONNECT, _REQUEST, operation("disconnect"), _CONNECT, _EXIT)),
        ("reload", disk, (_CONNECT, _REQUEST, *unloads, _CONNECT, *loads, _CONNECT, _EXIT)),
        ("start-fails", disk, (operation("fail", call="XS_WRITE -> ENOSPC"), _CONNECT, _CONNECT, _EXIT)),
        (
            "hot-plug",
            (),
            (_CONNECT, operation("add-device"), operation("time"), _CONNECT, operation("remove-device"), _EXIT),
        ),
        ("stop-start-two", two, (_CONNECT, operation("disconnect"), _CONNECT, _EXIT)),
        ("connect-exit", disk, (_CONNECT, _EXIT)),
        ("unload", disk, (*unloads, _CONNECT, _EXIT)),
        ("retry", disk, (_CONNECT, _STALE, operation("allocate"), operation("free"), _EXIT)),
        ("slow-peers", two, (operation("backend", delay=13), _CONNECT, _REQUEST, _EXIT)),
        ("each-device", DEVICE_KINDS, (_CONNECT, _REQUEST, _EXIT)),
        ("two-disks", ("block", "block"), (_CONNECT, _REQUEST, _EXIT)),
        ("exit", (), (_EXIT,)),
    ):
        yield title, scenario(world=world, design=design, devices=devices, operations=steps)
    yield "bus-last", scenario(order=(1, 2, 0), **both)
    yield "no-reconnection", scenario(reconnection=False, **both)
