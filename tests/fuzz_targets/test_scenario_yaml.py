"""Scenarios as YAML: what is written, what is read, and every message."""

import pytest
import yaml
from hypothesis import given, settings

from fuzz_targets import scenario_yaml
from fuzz_targets.scenario_yaml import SIZE_MAX, InputError, describe, dump, load, near_miss
from reference_impl.scenario import DESIGNS, MAX_OPERATIONS, Scenario, operation, scenario
from tests.fuzz_targets.scenarios import scenarios

HEAD = "version: 1\ndesign: disconnect\n"
RING = "version: 1\nworld: ring\n"


@given(scenarios())
@settings(max_examples=200, deadline=None)
def test_load_gives_back_what_dump_wrote(made: Scenario) -> None:
    """load(dump(s)) == s for every valid scenario."""
    assert load(dump(made), "x.yaml") == made


@given(scenarios(max_operations=4))
@settings(max_examples=50, deadline=None)
def test_dump_writes_what_every_yaml_reader_reads(made: Scenario) -> None:
    """PyYAML's own loader reads the text as the plain values that it stands for."""
    read = yaml.safe_load(dump(made))
    assert len(read["operations"]) == len(made.operations)
    assert read.get("design", "") == made.design
    assert read.get("devices", []) == list(made.devices)
    for written, step in zip(read["operations"], made.operations, strict=True):
        assert step.kind == (written if isinstance(written, str) else next(iter(written)))


def test_dump_leaves_out_what_is_simplest() -> None:
    """A scenario of simple values is a few lines."""
    made = scenario(design="disconnect", operations=(operation("connect"), operation("exit")))
    assert dump(made) == "version: 1\ndesign: disconnect\noperations:\n- connect\n- exit\n"


def test_dump_writes_everything_that_is_not_simplest() -> None:
    """Every key and field has its place."""
    made = scenario(
        design="reference-count",
        reconnection=False,
        devices=("block", "network"),
        order=(1, 0),
        operations=(
            operation("fail", call="AllocatePool -> EFI_OUT_OF_RESOURCES", nth=3),
            operation("fail", call="EVTCHNOP_send -> -22"),
            operation("connect", controller="child-0", recursive=False),
            operation("exit", map_key="stale"),
        ),
    )
    assert dump(made) == (
        "version: 1\n"
        "design: reference-count\n"
        "reconnection: false\n"
        "devices: [block, network]\n"
        "order: [1, 0]\n"
        "operations:\n"
        "- fail: {nth: 3}\n"
        "- fail: {call: EVTCHNOP_send -> -22}\n"
        "- connect: {controller: child-0, recursive: false}\n"
        "- exit: {map_key: stale}\n"
    )


def test_dump_writes_bytes_as_quoted_digits() -> None:
    """Digits that YAML would take for a number are text, and an empty value is written as one."""
    made = scenario(
        world="ring",
        order="fifo",
        operations=(operation("answer", what="raw", data=b"\x00\x12"), operation("ask", path="")),
    )
    assert dump(made) == (
        'version: 1\nworld: ring\norder: fifo\noperations:\n- answer: {what: raw, data: "0012"}\n- ask: {path: ""}\n'
    )
    assert load(dump(made), "x") == made


def test_dump_writes_switches() -> None:
    """Switches are a list, and come back sorted."""
    text = HEAD + "environment: hostile\nswitches: [timer-ticks, silent-peers]\noperations: []\n"
    made = load(text, "x")
    assert made.switches == ("silent-peers", "timer-ticks")
    assert "switches: [silent-peers, timer-ticks]\n" in dump(made)


def test_describe_is_one_line() -> None:
    """An operation reads as it stands in the file."""
    assert describe(operation("exit")) == "exit"
    assert describe(operation("time", milliseconds=10)) == "time: {milliseconds: 10}"


def test_load_reads_what_people_write() -> None:
    """Comments, block style, empty fields, quotes and unquoted digits are all right."""
    text = (
        "# a comment\nversion: 1\nworld: ring\noperations:\n"
        "  - answer:\n      data: 0102\n      what: 'raw'\n  - answer: {data: 1e10}\n  - ask:\n  - ask: {}\n"
    )
    assert load(text, "x").operations == (
        operation("answer", what="raw", data=b"\1\2"),
        operation("answer", data=b"\x1e\x10"),
        operation("ask"),
        operation("ask"),
    )


def test_load_makes_an_order_canonical() -> None:
    """A permutation with a fixed tail, and one that permutes nothing, have one form."""
    assert load(HEAD + "order: [1, 0, 2]\noperations: []\n", "x").order == (1, 0)
    assert load(HEAD + "order: [0, 1]\noperations: []\n", "x").order == "edk2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.yaml: empty"),
        ("# nothing\n", "s.yaml: empty"),
        ("- connect\n", "s.yaml:1: expected a mapping, found a list"),
        ("connect", "s.yaml:1: expected a mapping, found 'connect'"),
        ("design: disconnect\n", "s.yaml:1: version: missing; this program reads version 1"),
        ("version: 2\n", "s.yaml:1: version: 2 is not a version that this program reads (1)"),
        ("version: one\n", "s.yaml:1: version: expected a whole number, found 'one'"),
        ("version: '1'\n", "s.yaml:1: version: expected a whole number, found '1'"),
        ("version: 01\n", "s.yaml:1: version: expected a whole number, found '01'"),
        ("version:\n", "s.yaml:1: version: expected a whole number, found nothing"),
        (
            "version: 1\noperations: []\n",
            "s.yaml:1: design: missing; one of disconnect, exit-callback, reference-count",
        ),
        ("version: 1\ndesign: disconnect\n", "s.yaml:1: operations: missing; a list, [] for none"),
        (
            "version: 1\ndesgin: disconnect\n",
            "s.yaml:2: unknown key 'desgin' (did you mean 'design'?)",
        ),
        (
            "version: 1\nqqq: 1\n",
            "s.yaml:2: unknown key 'qqq' (known: version, world, design, images, environment, switches, fault, reconnection, "
            "devices, order, operations)",
        ),
        ("version: 1\ndesign: disconnect\ndesign: disconnect\n", "s.yaml:3: key 'design' stands here twice"),
        ("version: 1\n[1, 2]: 3\n", "s.yaml:2: expected a name, found a list"),
        ("version: 1\n~: 3\n", "s.yaml:2: expected a name, found nothing"),
        (
            "version: 1\ndesign: reference-cuont\n",
            "s.yaml:2: design: unknown value 'reference-cuont' (did you mean 'reference-count'?)",
        ),
        ("version: 1\nworld: ring\ndesign: disconnect\n", "s.yaml:3: design: the world 'ring' has none"),
        ("version: 1\nworld: moon\n", "s.yaml:2: world: unknown value 'moon' (one of platform, core, ring, efi-image)"),
        ("version: 1\nworld: {}\n", "s.yaml:2: world: expected a name, found a mapping"),
        (HEAD + "environment: hostil\n", "s.yaml:3: environment: unknown value 'hostil' (did you mean 'hostile'?)"),
        (
            HEAD + "switches: [timer-tick]\n",
            "s.yaml:3: switches[0]: unknown value 'timer-tick' (did you mean 'timer-ticks'?)",
        ),
        (HEAD + "switches: [timer-ticks]\n", "s.yaml:3: switches: the conforming environment has none"),
        (
            "version: 1\nworld: ring\nenvironment: hostile\n",
            "s.yaml:3: environment: unknown value 'hostile' (one of conforming)",
        ),
        (HEAD + "reconnection: maybe\n", "s.yaml:3: reconnection: expected true or false, found 'maybe'"),
        (HEAD + "reconnection: yes\n", "s.yaml:3: reconnection: expected true or false, found 'yes'"),
        (HEAD + "devices: block\n", "s.yaml:3: devices: expected a list, found 'block'"),
        (
            HEAD + "devices: [block, blok]\n",
            "s.yaml:3: devices[1]: unknown value 'blok' (did you mean 'block'?)",
        ),
        (HEAD + "devices: [block, block, block, block, block]\n", "s.yaml:3: devices: 5 devices, at most 4"),
        (HEAD + "order: edk\n", "s.yaml:3: order: unknown value 'edk' (did you mean 'edk2'?)"),
        (HEAD + "order: {}\n", "s.yaml:3: order: expected a list, found a mapping"),
        (
            HEAD + "order: [0, 0]\n",
            "s.yaml:3: order: [0, 0] is no permutation of 0 to n-1 with n at most 16",
        ),
        (HEAD + "order: [0, a]\n", "s.yaml:3: order[1]: expected a whole number, found 'a'"),
        (HEAD + "operations: connect\n", "s.yaml:3: operations: expected a list, found 'connect'"),
        (HEAD + "operations:\n", "s.yaml:3: operations: expected a list, found nothing"),
        (
            HEAD + "operations:\n- conect\n",
            "s.yaml:4: operations[0]: unknown operation 'conect' (did you mean 'connect'?)",
        ),
        (HEAD + "operations:\n- ask\n", "s.yaml:4: operations[0]: the world 'platform' has no operation 'ask'"),
        (HEAD + "operations:\n- \n", "s.yaml:4: operations[0]: expected a name, found nothing"),
        (
            HEAD + "operations:\n- {connect: {}, exit: {}}\n",
            "s.yaml:4: operations[0]: expected one operation, found 2 keys",
        ),
        (
            HEAD + "operations:\n- exit\n- exit\n- connect:\n    driver: blok\n",
            "s.yaml:7: operations[2].connect.driver: unknown value 'blok' (did you mean 'block'?)",
        ),
        (
            HEAD + "operations:\n- connect: {drivr: block}\n",
            "s.yaml:4: operations[0].connect: unknown field 'drivr' (did you mean 'driver'?)",
        ),
        (
            HEAD + "operations:\n- free: {pages: 1}\n",
            "s.yaml:4: operations[0].free: unknown field 'pages' (known: none)",
        ),
        (
            HEAD + "operations:\n- exit: {map_key: stale, map_key: stale}\n",
            "s.yaml:4: operations[0].exit: field 'map_key' stands here twice",
        ),
        (
            HEAD + "operations:\n- exit: stale\n",
            "s.yaml:4: operations[0].exit: expected a mapping, found 'stale'",
        ),
        (
            HEAD + "operations:\n- connect: {recursive: 1}\n",
            "s.yaml:4: operations[0].connect.recursive: expected true or false, found '1'",
        ),
        (
            HEAD + "operations:\n- fail: {nth: 200}\n",
            "s.yaml:4: operations[0].fail.nth: unknown value 200 (1 to 128)",
        ),
        (
            HEAD + "operations:\n- backend: {delay: 4}\n",
            "s.yaml:4: operations[0].backend.delay: unknown value 4 (one of 0, 1, 2, 3, 5, 8, 13, 21)",
        ),
        (
            HEAD + "operations:\n- fail: {call: AllocatPool -> EFI_OUT_OF_RESOURCES}\n",
            "s.yaml:4: operations[0].fail.call: unknown value 'AllocatPool -> EFI_OUT_OF_RESOURCES' "
            "(did you mean 'AllocatePool -> EFI_OUT_OF_RESOURCES'?)",
        ),
        (
            HEAD + f"operations:\n- connect: {{driver: {'q' * 50}}}\n",
            f"s.yaml:4: operations[0].connect.driver: unknown value '{'q' * 40}…' "
            "(one of any, xenbus, block, network, console)",
        ),
        (
            HEAD + f"operations:\n- fail: {{call: {'9' * 30}}}\n",
            f"s.yaml:4: operations[0].fail.call: unknown value '{'9' * 30}'",
        ),
        (
            RING + "operations:\n- answer: {data: xyz}\n",
            "s.yaml:4: operations[0].answer.data: expected hexadecimal digits, two for each byte, found 'xyz'",
        ),
        (
            RING + "operations:\n- answer: {data: [1]}\n",
            "s.yaml:4: operations[0].answer.data: expected hexadecimal digits, two for each byte, found a list",
        ),
        (
            RING + f"operations:\n- answer: {{data: '{'00' * 65}'}}\n",
            "s.yaml:4: operations[0].answer.data: 65 bytes, at most 64",
        ),
        (
            HEAD + "operations:\n" + "- exit\n" * (MAX_OPERATIONS + 1),
            f"s.yaml:4: operations: {MAX_OPERATIONS + 1} operations, at most {MAX_OPERATIONS}",
        ),
        ("version: &a 1\n", "s.yaml:1: anchors and aliases are not allowed"),
        ("version: *a\n", "s.yaml:1: anchors and aliases are not allowed"),
        ("version: !!int 1\n", "s.yaml:1: tags are not allowed"),
        ("version: 1\n---\nversion: 1\n", "s.yaml:2: more than one document"),
        ("[" * 17 + "]" * 17, "s.yaml:1: nested too deeply"),
        ("x" * (SIZE_MAX + 1), f"s.yaml: larger than {SIZE_MAX} bytes, so no scenario"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, message: str) -> None:
    """Each mistake has one message with file, line and field."""
    with pytest.raises(InputError) as caught:
        load(text, "s.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (HEAD + "operations:\n- connect: {controller: bus", 5),
        (HEAD + "operations: [", 4),
        ("version: 1\n\tdesign: x\n", 2),
        ("a: b: c\n", 1),
        ("'unfinished\n", 2),
    ],
)
def test_text_that_is_not_yaml_is_refused_with_its_line(text: str, line: int) -> None:
    """A truncated or broken text is one line that names the file; the exact line differs between YAML libraries."""
    with pytest.raises(InputError, match=r"^s\.yaml:\d+: not YAML: [^\n]+$") as caught:
        load(text, "s.yaml")
    assert abs(int(str(caught.value).split(":")[1]) - line) <= 1


@pytest.mark.parametrize("text", ["version: 1\0", "\x07", "\ud800", "%" * 50, "\x85" * 3 + "{"])
def test_noise_is_refused_in_one_line(text: str) -> None:
    """Control characters and lone surrogates give one line, whichever part of the YAML library refuses them."""
    with pytest.raises(InputError, match=r"^s\.yaml[^\n]*$"):
        load(text, "s.yaml")


@pytest.mark.parametrize("loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
def test_both_loaders_read_the_same(loader: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libyaml everything works too."""
    monkeypatch.setattr(scenario_yaml, "_LOADER", loader)
    made = scenario(design="disconnect", order=(1, 0), operations=(operation("exit", map_key="stale"),))
    assert load(dump(made), "x") == made
    with pytest.raises(InputError, match=r"^x: empty$"):
        load("", "x")
    with pytest.raises(InputError, match=r"^x:1: nested too deeply$"):
        load("[" * 100_000, "x")
    with pytest.raises(InputError, match=r"^x(:1)?: not YAML"):
        load("a: \0", "x")


def test_near_misses_are_suggested() -> None:
    """A close name is named, a far one is not."""
    assert near_miss("disconect", DESIGNS) == " (did you mean 'disconnect'?)"
    assert near_miss("banana", DESIGNS) == ""
