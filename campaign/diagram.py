"""A finding as a sequence diagram: one SVG file that a reader understands without knowing this project.

Time runs from top to bottom. Each party of the machine is a lifeline: the loader, the firmware core, the bus driver, the
device drivers, Xen (xenstore and hypervisor), the back ends, and the operating system that takes over. Bands in the
background are the phases of ExitBootServices (UEFI 2.10 §7.4.6). The broken step is marked, with what was expected and
what was seen below it; the numbers on the left are the steps of the timeline.

A run has hundreds of records, and a picture has room for a few dozen. So each record has a level (`_level`): the broken
step and all that it is nested in come first, then what moves the machine on, then what devices and peers do. The picture
takes the most important, the nearest to the broken step first; where many were left out, a line says how many and what.

The file needs nothing else: styles are inside, in light and dark, and arrow heads are drawn by hand, because an element
that several pictures in one page refer to by id would be hidden with the first of them.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from xml.sax.saxutils import escape

from oracles.finding import Finding
from oracles.memory_services import MEMORY_SERVICES
from reference_impl.timeline import XENBUS_STATES, describe
from reference_impl.trace import Kind, Phase, Record, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.status import EfiStatus

ROWS_MAX = 70  # records in one picture
GAP_MIN = 8  # records left out in one place that are worth a line
NEIGHBOURS = 4  # records before and after the broken step that are shown whatever they are

_NO_NEWS = frozenset({"RaiseTPL", "RestoreTPL", "EVTCHNOP_send"})  # what surrounds every xenstore request

_TEXT_MAX = 54  # characters on an arrow
_STEP_IN_TEXT = re.compile(r"\bstep (\d+)\b")
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

LOADER, CORE, XEN, BACKEND, SYSTEM = "os-loader", "core", "xen", "backend", "os"
_PARTIES = {
    LOADER: ("OS loader", "leaves the firmware"),
    CORE: ("Firmware core", "boot services"),
    XEN: ("Xen", "xenstore, hypervisor"),
    BACKEND: ("Back ends", "the devices' other side"),
    SYSTEM: ("Operating system", "takes over"),
}
_OF_AGENT = {
    **dict.fromkeys(("", "firmware", "DxeCore", "core", "scenario", "environment"), CORE),
    **dict.fromkeys(("xenstored", "hypervisor"), XEN),
    "frontend": BACKEND,
}
_BUS = "XenBusDxe"
_SORTS = {_BUS: "bus driver", "third-party": "the environment's"}

_BANDS = {
    Phase.BOOT: "Boot services",
    Phase.BEFORE: "BEFORE_EXIT_BOOT_SERVICES notifications: memory services are still allowed",
    Phase.CHECK: "ExitBootServices",
    Phase.FAILED: "Notifications of a failed exit",
    Phase.RETRY: "The exit has failed: memory services, and another attempt",
    Phase.EXIT: "EXIT_BOOT_SERVICES notifications: no memory services, no timers",
    Phase.RUNTIME: "The operating system runs",
}


def sequence_diagram(trace: Trace, finding: Finding, heading: str) -> str:
    """The SVG of `finding` in its run. `heading` is one line that stands above it."""
    rows = list(_rows(trace, finding))
    return _Drawing(rows, finding, heading).svg()


# ---- what is shown --------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """One line of the picture.

    source, target  lifelines; the same for what one party does by itself, both "" for a line across all of them
    last            the last step that happens inside; the step itself where nothing does
    tone            "" for a call, "bad" for one that fails, "strong" for what the rules are about, "gap", "operation"
    """

    step: int
    phase: Phase
    source: str
    target: str
    text: str
    tone: str = ""
    hint: str = ""
    last: int = 0
    opens: bool = False  # an entry point: its lifeline is at work until `last`


def _rows(trace: Trace, finding: Finding) -> Iterator[_Row]:
    records = [Record(*fields) for fields in trace.records]
    parents = parents_of(records)
    before = -1
    for step in steps_to_show(trace, finding, ROWS_MAX):
        record = records[step]
        hidden = records[before + 1 : step]
        if len(hidden) >= GAP_MIN:
            yield _Row(before + 1, Phase(hidden[0].phase), "", "", _gap(hidden), "gap")
        last = step
        while last + 1 < len(records) and records[last + 1].depth > record.depth:
            last += 1
        yield _row(step, record, _driver_around(records, parents, step), last)
        before = step
    hidden = records[before + 1 :]
    if len(hidden) >= GAP_MIN:
        yield _Row(before + 1, Phase(hidden[0].phase), "", "", _gap(hidden), "gap")


def parents_of(records: Sequence[Record]) -> list[int]:
    """For each record the one that it is nested in; -1 for none."""
    parents: list[int] = []
    open_records: list[int] = []
    for step, record in enumerate(records):
        while open_records and records[open_records[-1]].depth >= record.depth:
            open_records.pop()
        parents.append(open_records[-1] if open_records else -1)
        open_records.append(step)
    return parents


def steps_to_show(trace: Trace, finding: Finding, steps_max: int) -> list[int]:
    """The steps that tell most about `finding`: by level, and within one by distance from the broken step."""
    records = [Record(*fields) for fields in trace.records]
    if not records:
        return []
    parents = parents_of(records)
    broken = min(finding.step, len(records) - 1)
    kept = {broken, *(step for text in _STEP_IN_TEXT.findall(finding.seen) if (step := int(text)) < len(records))}
    for step in tuple(kept):
        while (step := parents[step]) >= 0:
            kept.add(step)
    beside = [
        step
        for step, parent in enumerate(parents)
        if parent == parents[broken] and (step == broken or records[step].name not in _NO_NEWS)
    ]
    place = beside.index(broken)
    neighbours = set(beside[max(0, place - NEIGHBOURS) : place + NEIGHBOURS + 1])
    levels: dict[int, int] = {}
    for step, record in enumerate(records):
        level = 0 if step in kept else _level(record)
        if level > 2 and step in neighbours:
            level = 2
        if level <= 2:
            levels[step] = level
    order = sorted(levels, key=lambda step: (levels[step], abs(step - broken)))
    return sorted(order[:steps_max])


def _level(record: Record) -> int:
    """0 for what every picture needs, 1 for what drivers are asked to do, 2 for what devices do, 3 for all else."""
    kind, phase = record.kind, record.phase
    if kind in (Kind.OPERATION, Kind.RESET, Kind.CONNECTION, Kind.INJECTED, Kind.MEMORY, Kind.STUCK, Kind.FAULT):
        return 0
    if kind == Kind.EXIT:
        return 3 if record.name == "timers-off" else 0
    if kind == Kind.TAKE_OVER:
        return 2 if record.status == "OK" else 0
    if kind == Kind.SERVICE and record.name == "ExitBootServices":
        return 0
    if kind == Kind.ENTRY:
        return 3 if record.name == "Supported" else 1
    if kind in (Kind.REFERENCE, Kind.DRIVER_STATE) or (kind == Kind.MAP_KEY and phase >= Phase.CHECK):
        return 1
    return 2 if kind == Kind.XENBUS_STATE else 3


def _gap(hidden: Iterable[Record]) -> str:
    """What was left out, the most frequent first."""
    sorts = Counter(sort for record in hidden if (sort := _sort(record)))
    if not sorts:
        return "⋯"
    listed = ", ".join(f"{count} × {sort}" for sort, count in sorts.most_common(4))
    return f"⋯ {listed}"


def _sort(record: Record) -> str:
    """What a record counts as in a gap; "" for what goes without saying."""
    if record.kind == Kind.SERVICE:
        return "memory service" if record.name in MEMORY_SERVICES else "other boot service"
    return {
        Kind.ENTRY: "driver entered",
        Kind.HYPERCALL: "hypercall",
        Kind.XENSTORE: "xenstore request",
        Kind.XENBUS_STATE: "device state",
        Kind.OPERATION: "operation",
    }.get(Kind(record.kind), "")


def _driver_around(records: Sequence[Record], parents: Sequence[int], step: int) -> str:
    """The driver whose entry point the record is nested in; "" for none."""
    while (step := parents[step]) >= 0:
        if records[step].kind == Kind.ENTRY:
            return records[step].agent
    return ""


def lifeline_of(agent: str) -> str:
    """The lifeline of an agent: parts of the platform share one, every driver has its own."""
    return agent if agent in _PARTIES else _OF_AGENT.get(agent, agent)


def _row(step: int, record: Record, driver: str, last: int) -> _Row:
    kind = record.kind
    agent = lifeline_of(record.agent)
    source, target, tone, opens = agent, agent, "", False
    if kind == Kind.OPERATION:
        source = target = ""
        tone = "operation"
        text = describe(record)
    elif kind == Kind.SERVICE:
        target = CORE
        text = f"{record.name}({_protocol(record)}){_refusal(record)}"
    elif kind == Kind.CORE_MEMORY:
        source = target = CORE
        text = f"{record.arguments[0]}s memory for {record.name}()"
    elif kind == Kind.ENTRY:
        source = driver or CORE if record.name == "ExitCallback" else CORE
        opens = True
        text = f"{'notification' if record.name == 'Notify' else record.name + '()'}{_refusal(record)}"
    elif kind == Kind.INJECTED:
        tone = "bad"
        text = f"made to fail: {record.name} = {record.status}"
    elif kind in (Kind.HYPERCALL, Kind.XENSTORE):
        target = XEN
        text = f"{record.name} {record.arguments[0] if kind == Kind.XENSTORE and record.arguments else ''}".rstrip()
    elif kind == Kind.CONNECTION:
        target, tone = XEN, "strong"
        text = f"takes the {record.name} into use (generation {record.arguments[0]})"
    elif kind == Kind.RESET:
        target, tone = XEN, "strong"
        text = f"resets the {record.name} (generation {record.arguments[0]})"
    elif kind == Kind.REFERENCE:
        source, tone = driver or agent, "strong"
        text = f"{record.name}({', '.join(map(_truth, record.arguments))}): count is now {record.value}"
    elif kind == Kind.GRANT:
        target = XEN
        text = f"{record.name} access to a page"
    elif kind == Kind.XENBUS_STATE:
        source, target = (BACKEND, XEN) if record.agent == "backend" else (driver or CORE, XEN)
        text = f"{record.name.removeprefix('device/')}: {' → '.join(map(_state, record.arguments))}"
    elif kind == Kind.MAP_KEY:
        source = target = CORE
        tone = "strong"
        text = f"memory map changes: key {record.arguments[0]} → {record.arguments[1]}"
    elif kind == Kind.EXIT:
        source = target = CORE
        text = _exit(record)
    elif kind == Kind.TAKE_OVER:
        source = SYSTEM
        target = {"memory-map": SYSTEM}.get(record.name, BACKEND if record.name.startswith("device/") else XEN)
        text = f"takes over {record.name}: {record.status}"
        tone = "" if record.status == "OK" else "bad"
    else:
        tone = "bad" if kind in (Kind.MEMORY, Kind.STUCK, Kind.FAULT) else ""
        text = describe(record)
    if not tone and isinstance(record.status, EfiStatus) and record.status.is_error:
        tone = "bad"
    return _Row(step, Phase(record.phase), source, target, text, tone, describe(record), last, opens)


def _protocol(record: Record) -> str:
    """The protocol that a service is about, by name."""
    names = (guids.NAMES.get(value) for value in record.arguments if isinstance(value, str))
    return next((name for name in names if name), "")


def _refusal(record: Record) -> str:
    if record.status is None:
        return " never returns"
    return f" = {record.status}" if isinstance(record.status, EfiStatus) and record.status.is_error else ""


def _truth(value: object) -> str:
    return str(value).upper() if isinstance(value, bool) else str(value)


def _state(value: object) -> str:
    text = str(value)
    return XENBUS_STATES[int(text)] if text.isdecimal() and int(text) < len(XENBUS_STATES) else text


def _exit(record: Record) -> str:
    if record.name == "attempt":
        return f"exit attempt with memory map key {record.arguments[0]}"
    if record.name == "key-check":
        told, current = record.arguments
        return f"checks the key: {told}" + ("" if told == current else f", but the memory map has {current}")
    return {
        "before-group": "signals BEFORE_EXIT_BOOT_SERVICES",
        "failed-group": "signals that the exit has failed",
        "exit-group": "signals EXIT_BOOT_SERVICES",
        "runtime": "boot services end",
    }.get(record.name, record.name)


# ---- how it is drawn ------------------------------------------------------------------------------------------------

_ROW, _BAND_HEAD, _HEAD, _LEFT, _RIGHT = 26, 26, 92, 46, 24  # pixels
_COLUMN_MIN = 132
_CHARACTER = 6.4  # pixels of an average character at 12 pixels; wider rather than narrower
_BOLD = 7.0
_ASIDE_MAX = 190  # pixels that lifelines stand apart for what one party does by itself
_LINE = 17

_STYLE = """
.sequence{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.sequence text{fill:#1f2328}
.sequence .paper{fill:#fff}
.sequence .small{font-size:11px}.sequence text.muted{fill:#59636e}
.sequence .title{font-size:15px;font-weight:600}.sequence .name{font-weight:600}
.sequence .box{fill:#eef2f6;stroke:#8c959f}
.sequence .life{stroke:#8c959f;stroke-dasharray:3 4}
.sequence .work{fill:#d6e4f5;stroke:#5c7fa8}
.sequence .call{stroke:#424a53;fill:none;stroke-width:1.3}.sequence .head{fill:#424a53}
.sequence .call.strong{stroke:#0a55b8;stroke-width:2}.sequence .head.strong{fill:#0a55b8}
.sequence text.strong{fill:#0a4da3;font-weight:600}
.sequence .call.bad{stroke:#b35900}.sequence .head.bad{fill:#b35900}.sequence text.bad{fill:#8f4700}
.sequence .call.broken{stroke:#c4121d;stroke-width:2.4}.sequence .head.broken{fill:#c4121d}
.sequence text.broken{fill:#b00d17;font-weight:700}
.sequence .wrong{fill:#ffecec;stroke:#c4121d}.sequence .tint{fill:#ffdfdf}
.sequence .rule{stroke:#8c959f}
.sequence .halo{fill:none;stroke-width:5;stroke-linejoin:round;stroke:#fff}
.sequence .band-0{fill:#fff}.sequence .band-1,.sequence .band-2,.sequence .band-3,.sequence .band-4{fill:#f4f6f8}
.sequence .band-5{fill:#fff6dd}.sequence .band-6{fill:#e9f6ec}
@media (prefers-color-scheme:dark){
.sequence text{fill:#e6edf3}.sequence text.muted{fill:#9aa5b1}.sequence .paper{fill:#0f141a}
.sequence .box{fill:#202832;stroke:#6e7883}.sequence .life{stroke:#6e7883}
.sequence .work{fill:#243b58;stroke:#7fa6d6}
.sequence .call{stroke:#c2cad3}.sequence .head{fill:#c2cad3}
.sequence .call.strong{stroke:#7db4ff}.sequence .head.strong{fill:#7db4ff}.sequence text.strong{fill:#9cc6ff}
.sequence .call.bad{stroke:#f0a24c}.sequence .head.bad{fill:#f0a24c}.sequence text.bad{fill:#f5b46b}
.sequence .call.broken{stroke:#ff6b73}.sequence .head.broken{fill:#ff6b73}.sequence text.broken{fill:#ff8f95}
.sequence .wrong{fill:#3a1619;stroke:#ff6b73}.sequence .tint{fill:#3a1619}.sequence .rule{stroke:#6e7883}
.sequence .band-0{fill:#0f141a}
.sequence .band-1,.sequence .band-2,.sequence .band-3,.sequence .band-4{fill:#171d25}
.sequence .band-5{fill:#2a2413}.sequence .band-6{fill:#12261a}
}
"""


@dataclass
class _Placed:
    """A row and where it stands."""

    row: _Row
    y: float
    broken: bool


class _Drawing:
    """Places rows and lifelines, and writes them down as SVG."""

    def __init__(self, rows: list[_Row], finding: Finding, heading: str) -> None:
        self._finding = finding
        self._heading = heading
        self._rows = rows
        used = {party for row in rows for party in (row.source, row.target) if party}
        drivers = [party for row in rows for party in (row.source, row.target) if party and party not in _PARTIES]
        drivers.sort(key=lambda agent: agent != _BUS)
        order = [LOADER, CORE, *dict.fromkeys(drivers), XEN, BACKEND, SYSTEM]
        self._lifelines = [party for party in order if party in used or party in (LOADER, CORE)]
        self._x = self._columns()
        self.width = max(self._x[self._lifelines[-1]] + _COLUMN_MIN / 2 + _RIGHT, 620.0)
        self._width_chars = int((self.width - _LEFT - 2 * _RIGHT) / _CHARACTER)

    def _columns(self) -> dict[str, float]:
        """Where each lifeline stands: far enough from its neighbours that every arrow has room for its text."""
        lifelines = self._lifelines
        gaps = [float(_COLUMN_MIN)] * (len(lifelines) - 1)
        for row in sorted(self._rows, key=lambda row: self._span(row)[1] - self._span(row)[0]):
            if not row.source:
                continue
            left, right = self._span(row)
            wanted = len(_cut(row.text)) * (_BOLD if row.tone == "strong" else _CHARACTER) + 30
            if left == right:  # what a party does by itself: its text is beside the lifeline, on the left of the last
                left, right = (left, left + 1) if left + 1 < len(lifelines) else (left - 1, left)
                wanted = min(wanted, _ASIDE_MAX)
            missing = wanted - sum(gaps[left:right])
            if missing > 0:
                for column in range(left, right):
                    gaps[column] += missing / (right - left)
        x = float(_LEFT + _COLUMN_MIN / 2)
        places = {lifelines[0]: x}
        for lifeline, gap in zip(lifelines[1:], gaps, strict=True):
            x += gap
            places[lifeline] = x
        return places

    def _span(self, row: _Row) -> tuple[int, int]:
        if not row.source:
            return 0, 0
        ends = sorted((self._lifelines.index(row.source), self._lifelines.index(row.target)))
        return ends[0], ends[1]

    # ---- writing --------------------------------------------------------------------------------------------------

    def svg(self) -> str:
        """The whole file."""
        bands: list[tuple[Phase, float, float]] = []
        placed: list[_Placed] = []
        said: list[tuple[float, list[str]]] = []
        phase: Phase | None = None
        y = float(_HEAD)
        for row in self._rows:
            if row.phase != phase and row.tone != "operation":
                phase = row.phase
                bands.append((phase, y, y))
                y += _BAND_HEAD
            broken = row.step == self._finding.step and row.tone != "gap"
            y += _ROW if row.tone != "operation" else _ROW + 6
            placed.append(_Placed(row, y - 7, broken))
            if broken:
                lines = self._verdict()
                said.append((y + 6, lines))
                y += len(lines) * _LINE + 24
            if bands:
                bands[-1] = (*bands[-1][:2], y + 6)
        height = y + 50
        parts = [*self._background(bands, height), *self._heads(height)]
        parts += self._work(placed)
        for one in placed:
            parts += self._line(one)
        for top, lines in said:
            parts += self._box(top, lines)
        parts.append(
            _text(
                _LEFT,
                height - 16,
                "Numbers on the left are steps of the timeline; ⋯ says what is left out. A bar is "
                "a driver at work. Texts are cut, and show whole under the pointer.",
                "small muted",
            )
        )
        width = round(self.width)
        description = f"{self._finding.expected} {self._finding.seen}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="sequence" role="img" viewBox="0 0 {width} {round(height)}" '
            f'width="{width}" height="{round(height)}">\n'
            f"<title>{clean(self._heading)}</title>\n<desc>{clean(description)}</desc>\n<style>{_STYLE}</style>\n"
            + "\n".join(parts)
            + "\n</svg>\n"
        )

    def _background(self, bands: list[tuple[Phase, float, float]], height: float) -> Iterator[str]:
        yield f'<rect class="paper" width="{self.width:.0f}" height="{height:.0f}"/>'
        yield _text(_LEFT - 22, 24, self._heading, "title")
        for phase, top, bottom in bands:
            yield f'<rect class="band-{int(phase)}" y="{top:.0f}" width="{self.width:.0f}" height="{bottom - top:.0f}"/>'
            yield f'<path class="rule" d="M0 {top:.0f}H{self.width:.0f}"/>'

        for phase, top, _ in bands:
            yield _text(_LEFT - 22, top + 17, _BANDS[phase], "small name muted")

    def _heads(self, height: float) -> Iterator[str]:
        for lifeline in self._lifelines:
            x = self._x[lifeline]
            title, subtitle = _PARTIES.get(lifeline) or (
                lifeline,
                _SORTS.get(lifeline, "driver"),
            )
            yield f'<path class="life" d="M{x:.0f} {_HEAD - 10}V{height - 34:.0f}"/>'
            half = _COLUMN_MIN / 2 - 4
            yield (
                f'<rect class="box" x="{x - half:.0f}" y="{_HEAD - 52}" width="{2 * half:.0f}" height="42" rx="5"/>'
                f"{_text(x, _HEAD - 35, title, 'name', anchor='middle', longest=20)}"
                f"{_text(x, _HEAD - 18, subtitle, 'small muted', anchor='middle', longest=26)}"
            )

    def _work(self, placed: list[_Placed]) -> Iterator[str]:
        """A bar on a driver's lifeline from an entry point to the last row that is shown inside it."""
        depth: Counter[str] = Counter()
        ends: list[tuple[int, str]] = []
        for index, one in enumerate(placed):
            row = one.row
            while ends and row.step > ends[-1][0]:
                depth[ends.pop()[1]] -= 1
            if not row.opens:
                continue
            inside = [later for later in placed[index:] if later.row.step <= row.last]
            bottom = inside[-1].y + 8
            x = self._x[row.target] - 5 + 4 * depth[row.target]
            yield f'<rect class="work" x="{x:.0f}" y="{one.y:.0f}" width="10" height="{bottom - one.y:.0f}" rx="2"/>'
            depth[row.target] += 1
            ends.append((row.last, row.target))

    def _line(self, one: _Placed) -> Iterator[str]:
        row, y = one.row, one.y
        tone = "broken" if one.broken else row.tone
        hint = f"<title>{clean(row.hint)}</title>" if row.hint else ""
        if row.tone == "operation":
            yield f'<path class="rule" d="M{_LEFT - 22} {y - 14:.0f}H{self.width - _RIGHT:.0f}"/>'
            yield _text(_LEFT - 22, y + 2, row.text, "name", hint=hint, longest=self._width_chars)
            return
        if row.tone == "gap":
            yield _text(_LEFT, y, row.text, "small muted", longest=self._width_chars)
            return
        if one.broken:
            yield f'<rect class="tint" y="{y - 18:.0f}" width="{self.width:.0f}" height="{_ROW:.0f}"/>'
        yield _text(_LEFT - 10, y, str(row.step), f"small {'broken' if one.broken else 'muted'}", anchor="end")
        start, end = self._x[row.source], self._x[row.target]
        if start == end:
            side = -1 if row.source == self._lifelines[-1] else 1
            yield (
                f'<path class="call {tone}" d="M{start + 5 * side:.0f} {y - 9:.0f}h{9 * side}v8h{-9 * side}"/>'
                f'<path class="head {tone}" d="M{start + 5 * side:.0f} {y - 1:.0f}l{6 * side} -3v6z"/>'
            )
            anchor = "end" if side < 0 else "start"
            yield _text(start + 20 * side, y, _cut(row.text), tone, anchor=anchor, hint=hint)
            return
        step = 1 if end > start else -1
        start, end = start + 5 * step, end - 5 * step
        middle = (start + end) / 2
        yield (
            f'<path class="call {tone}" d="M{start:.0f} {y + 2:.0f}H{end - 5 * step:.0f}"/>'
            f'<path class="head {tone}" d="M{end:.0f} {y + 2:.0f}l{-7 * step} -4v8z"/>'
            f"{_text(middle, y - 3, _cut(row.text), tone, anchor='middle', hint=hint)}"
        )

    def _verdict(self) -> list[str]:
        finding = self._finding
        width = self._width_chars - 6
        return [
            f"✗ {finding.oracle}/{finding.rule}, broken by {finding.agent} ({finding.source})",
            *textwrap.wrap(f"Expected: {finding.expected}", width),
            *textwrap.wrap(f"Seen: {finding.seen}", width),
        ]

    def _box(self, top: float, lines: list[str]) -> Iterator[str]:
        height = len(lines) * _LINE + 12
        yield (
            f'<rect class="wrong" x="{_LEFT}" y="{top:.0f}" width="{self.width - _LEFT - _RIGHT:.0f}" '
            f'height="{height}" rx="5"/>'
        )
        for number, line in enumerate(lines):
            yield _text(_LEFT + 12, top + 19 + number * _LINE, line, "" if number else "broken")


def xml_text(text: str) -> str:
    """Text without the characters that no XML file may have, not even escaped."""
    return _NO_XML.sub("\ufffd", text)


def clean(text: str) -> str:
    """Text as it stands in XML, whatever is in it."""
    return escape(xml_text(text), {'"': "&quot;"})


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_MAX else f"{text[: _TEXT_MAX - 1]}…"


def _text(
    x: float, y: float, text: str, classes: str = "", *, anchor: str = "", hint: str = "", longest: int = 0
) -> str:
    if longest and len(text) > longest:
        text = f"{text[: longest - 1]}…"
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{classes}"{anchored}>{clean(text)}{hint}</text>'
