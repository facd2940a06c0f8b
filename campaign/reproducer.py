"""A reproducer: a folder that stands alone and shows one finding.

    README.md       what is wrong, for a reader who has never heard of this project
    sequence.svg    the run as a sequence diagram, with the broken step marked
    scenario.yaml   the scenario, to read, edit and commit
    scenario.bin    the same as bytes
    raw.bin         the bytes as the fuzzer found them
    verdict.json    what is wrong, by which rule, under which notification orders
    timeline.txt    what happens in the run, with the broken step marked
    test_….py       a pytest test that fails while the bug is there

A folder appears as a whole or not at all: it is written under a hidden name beside its place, and then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from campaign.diagram import sequence_diagram
from campaign.explanation import explanation
from campaign.minimize import Judge, signatures
from fuzz_targets import codec, scenario_yaml
from fuzz_targets.harness import Verdict
from fuzz_targets.input_files import InputError
from fuzz_targets.registry import TARGETS
from oracles.finding import Finding
from reference_impl import timeline
from reference_impl.scenario import ORDER_EDK2, ORDER_FIFO, Scenario

SCENARIO_YAML = "scenario.yaml"
SCENARIO_BYTES = "scenario.bin"
RAW_BYTES = "raw.bin"
VERDICT = "verdict.json"
TIMELINE = "timeline.txt"
README = "README.md"
DIAGRAM = "sequence.svg"

VERSION = 1

_NAME_MAX = 120  # characters of a folder's name; file systems take 255 bytes, and test file names grow from it
_VERDICT_SIZE_MAX = 1 << 20  # bytes
_ATTEMPTS_MAX = 100  # to take a place that other workers take at the same time

Order = str | tuple[int, ...]


class RecordedVerdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """verdict.json: the finding, and what was known about it when the reproducer was written.

    orders  the notification orders under which the finding appears: "edk2", "fifo", or a permutation as numbers
    runs    in how many runs it had been seen by then
    target  the fuzz target whose own oracle finds it; "" for the findings of all others
    The other fields are those of `oracles.finding.Finding` and of the scenario.
    """

    version: int
    signature: str
    oracle: str
    rule: str
    source: str
    agent: str
    subject: str
    step: int
    expected: str
    seen: str
    note: bool
    world: str
    design: str
    environment: str
    switches: tuple[str, ...]
    fault: str
    target: str
    orders: tuple[str | tuple[int, ...], ...]
    runs: int


def write(
    folder: Path,
    scenario: Scenario,
    signature: str,
    raw: bytes,
    verdict: Verdict,
    *,
    orders: tuple[Order, ...] | None = None,
    runs: int = 1,
    target: str = "",
) -> Path:
    """Write the reproducer of `signature` as a folder inside `folder`, in place of an earlier one, and give its path.

    verdict  what `run_and_judge(scenario)` gives; it has to have the finding
    raw      the bytes as they were found, before minimizing
    orders   what `orders_of` gives; None has it work that out by running the scenario under each order
    runs     in how many runs the finding has been seen
    target   the fuzz target, where the finding is one of the target's own oracle ("canary")

    Raises OSError where the folder cannot be written; nothing is left half written then.
    """
    found = [finding for finding in verdict.findings if finding.signature == signature]
    assert found, f"the verdict has no finding {signature}"
    finding = found[0]
    name = name_of(scenario, signature)
    if orders is None:
        orders = orders_of(scenario, signature)
    recorded = RecordedVerdict(
        version=VERSION,
        signature=signature,
        oracle=finding.oracle,
        rule=finding.rule,
        source=finding.source,
        agent=finding.agent,
        subject=finding.subject,
        step=finding.step,
        expected=finding.expected,
        seen=finding.seen,
        note=finding.note,
        world=scenario.world,
        design=scenario.design,
        environment=scenario.environment,
        switches=scenario.switches,
        fault=scenario.fault,
        target=target,
        orders=orders,
        runs=runs,
    )
    test_name = f"test_{re.sub(r'[^A-Za-z0-9]+', '_', name)}"
    text = scenario_yaml.dump(scenario)
    files = {
        DIAGRAM: "the run as a sequence diagram",
        SCENARIO_YAML: "the scenario, to read, edit and commit",
        SCENARIO_BYTES: "the same as bytes",
        RAW_BYTES: "the bytes as the fuzzer found them",
        VERDICT: "the verdict for programs",
        TIMELINE: "everything that happens in the run, with the broken step marked",
        f"{test_name}.py": "a pytest test that fails while the bug is there",
    }
    tested = scenario.design or scenario.world
    diagram = sequence_diagram(
        verdict.trace, finding, f"{finding.oracle}/{finding.rule} by {finding.agent} in {tested}"
    )
    story = "\n".join(timeline.lines(verdict.trace, {finding.step: sentence_of(finding)}))
    with _appearing_at_once(folder / name) as place:
        (place / README).write_text(explanation(scenario, finding, verdict, orders, files), encoding="utf-8")
        (place / DIAGRAM).write_text(diagram, encoding="utf-8")
        (place / SCENARIO_YAML).write_text(text, encoding="utf-8")
        (place / SCENARIO_BYTES).write_bytes(codec.encode(scenario))
        (place / RAW_BYTES).write_bytes(raw)
        (place / VERDICT).write_bytes(msgspec.json.format(msgspec.json.encode(recorded), indent=2) + b"\n")
        (place / TIMELINE).write_text(f"{signature}\n\n{text}\n{story}\n", encoding="utf-8")
        (place / f"{test_name}.py").write_text(_test_of(test_name, scenario, signature, target), encoding="utf-8")
    return folder / name


def is_reproducer(path: Path) -> bool:
    """Whether `path` is a reproducer's folder."""
    return (path / VERDICT).is_file()


def read_verdict(path: Path) -> RecordedVerdict:
    """The recorded verdict of the reproducer in the folder `path`. Raises InputError where it cannot be read."""
    file = path / VERDICT
    try:
        with file.open("rb") as stream:
            data = stream.read(_VERDICT_SIZE_MAX + 1)
        if len(data) > _VERDICT_SIZE_MAX:
            raise InputError(f"{file}: larger than {_VERDICT_SIZE_MAX} bytes, so no verdict")
        recorded = msgspec.json.decode(data, type=RecordedVerdict)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{file}: {' '.join(str(error).split())}") from None
    if recorded.version != VERSION:
        raise InputError(f"{file}: version {recorded.version} is not one that this program reads ({VERSION})")
    if recorded.target and recorded.target not in TARGETS:
        raise InputError(f"{file}: there is no target {recorded.target!r}")
    return recorded


def name_of(scenario: Scenario, signature: str) -> str:
    """The folder's name: what was tested, then the signature, in characters that every file system takes.

    "disconnect--memory-services--direct-call--XenBusDxe--AllocatePool". Where characters had to be replaced or the name
    cut, a checksum keeps different findings apart.
    """
    tested = scenario.design or scenario.world
    parts = [f"{tested}+{scenario.fault}" if scenario.fault else tested, *signature.split("/", 3)]
    whole = "--".join(parts)
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", whole)[:_NAME_MAX]
    if name != whole:
        name = f"{name}--{hashlib.blake2s(whole.encode(), digest_size=4).hexdigest()}"
    return name


def orders_of(scenario: Scenario, signature: str, judge: Judge = signatures) -> tuple[Order, ...]:
    """The notification orders under which the finding appears: of edk2's, fifo, and the scenario's own permutation."""
    orders: list[Order] = [ORDER_EDK2, ORDER_FIFO]
    if scenario.order not in orders:
        orders.append(scenario.order)
    return tuple(order for order in orders if signature in judge(replace(scenario, order=order)))


def sentence_of(finding: Finding) -> str:
    """What is wrong, in one line: signature, expected and seen, and the rule's source."""
    kind = "note" if finding.note else "error"
    return f"{kind} {finding.signature}: expected: {finding.expected} Seen: {finding.seen} ({finding.source})"


def _test_of(test_name: str, scenario: Scenario, signature: str, target: str) -> str:
    """A few lines of pytest that read the scenario beside them. They need ebsfuzz installed, and nothing else."""
    tested = f"the design {scenario.design}" if scenario.design else f"the world {scenario.world}"
    if target:
        run, imported = f"TARGETS[{target!r}].run", ("input_files import read_scenario", "registry import TARGETS")
    else:
        run, imported = "run_and_judge", ("harness import run_and_judge", "input_files import read_scenario")
    return f'''"""Fails while the bug is there. It needs ebsfuzz to be installed."""

from pathlib import Path

from fuzz_targets.{imported[0]}
from fuzz_targets.{imported[1]}

SIGNATURE = {signature!r}


def {test_name.lower()}() -> None:
    """{tested[0].upper()}{tested[1:]} keeps the promise that it broke in the scenario beside this file."""
    verdict = {run}(read_scenario(Path(__file__).resolve().with_name({SCENARIO_YAML!r})))
    assert SIGNATURE not in [finding.signature for finding in verdict.findings]
'''


@contextmanager
def _appearing_at_once(place: Path) -> Iterator[Path]:
    """A hidden folder to write into, which takes `place` when the block ends well and goes when it does not.

    Workers may write the same reproducer at the same time: the last one stays, and none of them fails.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.new-{os.getpid()}")
    old = place.with_name(f".{place.name}.old-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed and had the same number
    try:
        new.mkdir()
        yield new
        _take_place(new, place, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _take_place(new: Path, place: Path, old: Path) -> None:
    """Rename `new` to `place`. What is there goes to `old` first: no folder can be renamed onto one that has files."""
    for _ in range(_ATTEMPTS_MAX):
        try:
            new.rename(place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):  # another worker may have taken it away just now
            place.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    raise OSError(errno.EBUSY, "others keep writing it", str(place))
