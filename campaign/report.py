"""A campaign as one HTML page that works offline, in print, on a phone and in the dark: `ebsfuzz report DIR`.

The page is made of the campaign's statistics, its reproducers and its corpus. Nothing in it reaches out: the policy that
it carries allows no address at all, and of scripts only the one that this module wrote, by its hash. All text goes
through Jinja2's escaping. Diagrams stand in it as images: what is inside an image is inert, whoever made the folder.

Behaviour is measured by running the corpus again (`campaign.behaviour`), and the starting corpus beside it, so that the
map can say what the campaign has seen and the seeds have not.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from campaign.behaviour import NEAR_MISSES, SERVICES, Behaviour, Cells, seen, size
from campaign.chart import DASHES, Points, line_chart
from campaign.coverage import scenarios_of
from campaign.display import program_command, shown
from campaign.durations import format_duration
from campaign.exit_status import UsageProblem
from campaign.findings import write_atomically
from campaign.markdown import code
from campaign.public_bugs import PublicBug, link_of, similar_to
from campaign.replay import scenarios_at
from campaign.reproducer import DIAGRAM, SCENARIO_YAML, TIMELINE
from campaign.statistics import CampaignRecord, TriagedFinding, read
from fuzz_targets.input_files import InputError, read_scenario
from fuzz_targets.registry import TARGETS
from guest import ExtraMissing
from guest.image import ImageError
from oracles import ORACLES

EXCERPT_BEFORE, EXCERPT_AFTER = 24, 10  # lines of the timeline around the broken step
EVENTS_MAX = 200
TEMPLATE = Path(__file__).with_name("report.html")
PAGE = "report.html"


def write_report(folder: Path, out: Path | None, scenarios_max: int) -> Path:
    """Write the page of the campaign in `folder`, and give its path: `out`, or `report.html` in the folder.

    scenarios_max  how many of the corpus run again for the map of behaviour

    Raises UsageProblem where `folder` is no campaign or the page cannot be written.
    """
    record = read(folder)
    path = out or folder / PAGE
    page = render(folder, record, behaviour_of(folder, record, scenarios_max))
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        raise UsageProblem(f"{path}: cannot be written: {error.strerror}") from None
    return path


def render(folder: Path, record: CampaignRecord, behaviour: MeasuredBehaviour) -> str:
    """The page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": format_duration, "time": _time, "cell": code}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    script = _script(TEMPLATE.read_text(encoding="utf-8"))
    findings = [_shown(folder, number, finding) for number, finding in enumerate(_ordered(record.findings), 1)]
    return template.render(
        record=record,
        findings=[one for one in findings if not one.finding.note],
        notes=[one for one in findings if one.finding.note],
        designs=[_design(record, design) for design in record.designs],
        table=_table(record, findings),
        charts=_charts(record),
        dashes=DASHES,
        behaviour=behaviour,
        services=SERVICES,
        near_misses=NEAR_MISSES,
        events=record.events[-EVENTS_MAX:],
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        replay_all=_command("replay", folder / "findings"),
        compare=_command("coverage", folder, "--against", "corpus"),
        folder=shown(folder),
    )


def _script(template: str) -> str:
    """The page's own script, whose hash the policy names."""
    return template.partition("<script>")[2].partition("</script>")[0]


def _time(seconds: float) -> str:
    """A moment for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _command(verb: str, *arguments: str | Path) -> str:
    words = [shown(one) if isinstance(one, Path) else one for one in arguments]
    return shlex.join([*program_command(), verb, *words])


# ---- findings -------------------------------------------------------------------------------------------------------


class ShownFinding(NamedTuple):
    """A finding as it stands in the page. `diagram` is the address of an image that holds itself, "" for none."""

    number: int
    finding: TriagedFinding
    orders: str
    scenario: str
    timeline: str
    diagram: str
    replay: str
    minimize: str
    bugs: Sequence[tuple[PublicBug, Sequence[tuple[str, str]]]]

    @property
    def anchor(self) -> str:
        """Its place in the page."""
        return f"finding-{self.number}"


def _ordered(findings: Iterable[TriagedFinding]) -> list[TriagedFinding]:
    """Errors before notes, and both by oracle, rule and design."""
    families = list(ORACLES)

    def key(finding: TriagedFinding) -> tuple[Any, ...]:
        family = families.index(finding.oracle) if finding.oracle in families else len(families)
        return finding.note, family, finding.rule, finding.design, finding.signature

    return sorted(findings, key=key)


def _shown(folder: Path, number: int, finding: TriagedFinding) -> ShownFinding:
    place = folder / finding.reproducer if finding.reproducer else None
    diagram = _bytes(place, DIAGRAM)
    bugs = similar_to(finding.oracle, finding.rule).values()
    return ShownFinding(
        number,
        finding,
        ", ".join(order if isinstance(order, str) else f"permutation {list(order)}" for order in finding.orders),
        _bytes(place, SCENARIO_YAML).decode("utf-8", "replace"),
        _excerpt(_bytes(place, TIMELINE).decode("utf-8", "replace").splitlines()),
        f"data:image/svg+xml;base64,{base64.b64encode(diagram).decode()}" if diagram else "",
        _command("replay", place) if place else "",
        _command("minimize", place) if place else "",
        [(bug, [(one, link_of(one)) for one in bug.places]) for bug in bugs],
    )


def _bytes(place: Path | None, name: str) -> bytes:
    """A file of a reproducer; nothing where it is missing, as in one of an earlier version."""
    if place is None:
        return b""
    try:
        return (place / name).read_bytes()
    except OSError:
        return b""


def _excerpt(lines: list[str]) -> str:
    """The lines around the broken step."""
    marked = [number for number, line in enumerate(lines) if line.startswith(">>>")]
    if not marked:
        return "\n".join(lines[: EXCERPT_BEFORE + EXCERPT_AFTER])
    start, end = max(0, marked[0] - EXCERPT_BEFORE), marked[0] + EXCERPT_AFTER + 1
    before, after = ["⋯"] if start else [], ["⋯"] if end < len(lines) else []
    return "\n".join([*before, *lines[start:end], *after])


# ---- designs and rules ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DesignFigures:
    """The figures of one design over all its workers."""

    name: str
    executions: int
    executions_per_second: float
    edges: int
    features: int
    corpus_size: int


def _design(record: CampaignRecord, design: str) -> DesignFigures:
    workers = [worker for worker in record.workers if worker.design == design]
    executions = sum(worker.executions for worker in workers)
    seconds = sum(worker.seconds for worker in workers)
    return DesignFigures(
        design or record.identity.target,
        executions,
        executions / seconds if seconds else 0.0,
        *(
            max((getattr(worker, name) for worker in workers), default=0)
            for name in ("edges", "features", "corpus_size")
        ),
    )


class RuleRow(NamedTuple):
    """One line of the table designs × rules: for each design the findings of this rule."""

    oracle: str
    rule: str
    note: bool
    cells: Sequence[Sequence[ShownFinding]]


def _table(record: CampaignRecord, findings: Sequence[ShownFinding]) -> list[RuleRow]:
    """A row for each rule that was broken, and one for each family of which none was."""
    broken = sorted({(one.finding.oracle, one.finding.rule, one.finding.note) for one in findings})
    families = [*ORACLES, *dict.fromkeys(oracle for oracle, _, _ in broken if oracle not in ORACLES)]
    rows = []
    for family in families:
        for oracle, rule, note in [row for row in broken if row[0] == family] or [(family, "", False)]:
            cells = [
                [
                    one
                    for one in findings
                    if (one.finding.design, one.finding.oracle, one.finding.rule, one.finding.note)
                    == (design, oracle, rule, note)
                ]
                for design in record.designs
            ]
            rows.append(RuleRow(oracle, rule, note, cells))
    return rows


# ---- over time ------------------------------------------------------------------------------------------------------


class Chart(NamedTuple):
    """A chart, the names of its lines, and the last figure of each."""

    title: str
    svg: Markup
    series: Sequence[tuple[str, float]]


def _charts(record: CampaignRecord) -> list[Chart]:
    names = {design: design or record.identity.target for design in record.designs}
    charts = []
    for title, attribute in (("Features reached", "features"), ("Edges reached", "edges"), ("Corpus", "corpus_size")):
        series: dict[str, Points] = {
            name: [
                (0.0, 0.0),
                *((one.seconds, float(getattr(one, attribute))) for one in record.progress if one.design == design),
            ]
            for design, name in names.items()
        }
        charts.append(_chart(title, series))
    findings = {name: _growth(record, design) for design, name in names.items()}
    return [_chart("Findings", findings, steps=True), *charts]


def _chart(title: str, series: dict[str, Points], *, steps: bool = False) -> Chart:
    # Only this module's numbers and escaped names are in it.
    svg = Markup(line_chart(series, f"{title} over time", steps=steps))
    return Chart(title, svg, [(name, points[-1][1]) for name, points in series.items()])


def _growth(record: CampaignRecord, design: str) -> Points:
    """How many findings of a design there were when; over the campaign's own seconds, whatever lay between sessions."""
    times = sorted(
        _campaign_seconds(record, finding.first_seen)
        for finding in record.findings
        if finding.design == design and not finding.note
    )
    return [
        (0.0, 0.0),
        *((seconds, float(count)) for count, seconds in enumerate(times, 1)),
        (record.seconds, float(len(times))),
    ]


def _campaign_seconds(record: CampaignRecord, moment: float) -> float:
    """How long the campaign had run at a moment."""
    seconds = 0.0
    for session in record.sessions:
        if moment < session.began:
            break
        seconds += min(session.seconds, moment - session.began)
    return seconds


# ---- behaviour ------------------------------------------------------------------------------------------------------


class MeasuredBehaviour(NamedTuple):
    """What the corpus shows when it runs again.

    maps     of `campaign.behaviour`; empty where it could not run
    new      map → cells that the starting corpus does not show
    runs     how many scenarios ran, of `total`
    problem  why it could not run
    """

    maps: dict[str, Cells]
    new: dict[str, set[tuple[str, str]]]
    runs: int
    total: int
    problem: str = ""

    def share(self, name: str) -> tuple[int, int]:
        """How many cells of a map were seen, and how many there are."""
        return len(seen(self.maps[name])), size(self.maps[name])


def behaviour_of(folder: Path, record: CampaignRecord, scenarios_max: int) -> MeasuredBehaviour:
    """Run the campaign's corpus and reproducers again, and the starting corpus; at most so many, evenly spread."""
    try:
        paths = [path for place in scenarios_of(folder) for path in scenarios_at(place)]
        chosen = paths[:: max(1, -(-len(paths) // scenarios_max))] if scenarios_max else []
        mine = _run(record.identity.target, chosen)
        own = Path(__file__).resolve().parent.parent / "corpus" / record.identity.target
        seeds = _run(record.identity.target, scenarios_at(own)) if own.is_dir() and chosen else Behaviour()
    except (InputError, ImageError, ExtraMissing) as error:
        return MeasuredBehaviour({}, {}, 0, 0, str(error))
    if not chosen:
        return MeasuredBehaviour({}, {}, 0, len(paths), "no scenario was run again")
    new = {name: seen(cells) - seen(seeds.maps[name]) for name, cells in mine.maps.items()}
    return MeasuredBehaviour(mine.maps, new, len(chosen), len(paths))


def _run(target: str, paths: Iterable[Path]) -> Behaviour:
    behaviour = Behaviour()
    for path in paths:
        behaviour.see(TARGETS[target].run(read_scenario(path)).trace)
    return behaviour
