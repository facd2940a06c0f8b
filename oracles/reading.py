"""How oracles read a trace: who can be blamed, where a phase begins, and in what a record is nested.

An oracle is asked about every run, and nearly every run is clean. So a clean trace must cost next to nothing: oracles
look only at the part that their rules are about (`start_of`), and work out sentences (`circumstances`) where they have
something to say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter

from reference_impl.trace import Kind, Phase, RecordTuple
from reference_impl.uefi.definitions import Tpl

PLATFORM_AGENTS = frozenset(
    {
        *("", "DxeCore", "firmware", "os-loader", "os", "environment"),
        # The core world's, which break the rules on purpose.
        *("caller", "other", "override", "manager", "refuser", "stubborn", "bus"),
    }
)
"""Agents that are no driver under test. What the environment itself does is never a finding."""

_SERVICE, _ENTRY = int(Kind.SERVICE), int(Kind.ENTRY)
_EXIT, _RUNTIME = int(Phase.EXIT), int(Phase.RUNTIME)
_TPL_NAMES = {int(tpl): f"TPL_{tpl.name}" for tpl in Tpl}
_phase_of = itemgetter(4)


def start_of(records: Sequence[RecordTuple], phase: int) -> int:
    """The index of the first record of `phase` or a later one; the number of records where there is none.

    `phase` is EXIT or RUNTIME. The two are behind the point of no return: once an exit attempt has got that far, no
    record of an earlier phase follows (UEFI 2.10 §7.4.6), so a binary search finds the place. The phases before them do
    come again with every attempt.
    """
    assert phase in (_EXIT, _RUNTIME), "only the last two phases are in order"
    return bisect_left(records, phase, key=_phase_of)


def tpl_name(tpl: int) -> str:
    """A task priority level as people write it: "TPL_CALLBACK", or "TPL 12" for one that has no name."""
    return _TPL_NAMES.get(tpl) or f"TPL {tpl}"


def circumstances(records: Sequence[RecordTuple], index: int) -> str:
    """In what the record is nested, from the inside out: ", inside Stop of XenPvBlkDxe, inside … ".

    Only driver code and the services that drivers called are named; what the loader or the firmware called is not.
    """
    depth = records[index][3]
    words = []
    for record in reversed(records[:index]) if depth else ():
        if record[3] >= depth:
            continue
        kind, agent, _, depth, _, name, _, _, _ = record
        if agent not in PLATFORM_AGENTS:
            if kind == _ENTRY:
                words.append(
                    f", inside the notification of {agent}" if name == "Notify" else f", inside {name} of {agent}"
                )
            elif kind == _SERVICE:
                words.append(f", inside {name} by {agent}")
        if depth == 0:
            break
    return "".join(words)


def answer(status: object) -> str:
    """How a call ended: "it answered EFI_SUCCESS", or "it never returned"."""
    return "it never returned" if status is None else f"it answered {status}"
