"""A scenario as YAML: what people read, edit and commit.

    version: 1
    design: reference-count
    devices: [block, network]
    order: [1, 0]
    operations:
    - connect
    - fail: {call: AllocatePool -> EFI_OUT_OF_RESOURCES, nth: 3}
    - exit: {map_key: stale}
    - exit

What has its simplest value is left out. Raw bytes are hexadecimal digits. Reading is strict: everything that is wrong
is an `InputError` with file, line and field, and near misses are suggested. Aliases, anchors and tags are refused, so
that a small file cannot stand for a large one, and so that there is one way to write a thing.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import yaml

from reference_impl.faulty import FAULTS
from reference_impl.scenario import (
    DEVICE_KINDS,
    IMAGE_SIZE_MAX,
    MAX_DEVICES,
    MAX_IMAGES,
    MAX_OPERATIONS,
    MAX_ORDER,
    OPERATIONS,
    ORDER_EDK2,
    ORDER_FIFO,
    SWITCHES,
    WORLDS,
    Blob,
    Field,
    Operation,
    Scenario,
    default_of,
    designs_of,
    environments_of,
    is_image_name,
    operations_of,
    scenario,
)

VERSION = 1
SIZE_MAX = 1 << 20  # bytes; the longest valid scenario needs less than a tenth of it
_DEPTH_MAX = 16  # levels of nesting; a scenario needs four

_KEYS = (
    *("version", "world", "design", "images", "environment", "switches", "fault"),
    *("reconnection", "devices", "order", "operations"),
)

# The C loader reads ten times as fast. PyYAML has it wherever libyaml was found when it was built.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_STR, _INT, _BOOL, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "bool", "null"))


_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,18})")


class InputError(Exception):
    """Something that the user gave cannot be read. The message is one line and names file, line and field."""


# ---- writing ------------------------------------------------------------------------------------------------------


def dump(scenario: Scenario) -> str:
    """The YAML text of a valid scenario; `load` gives the same scenario back."""
    simplest = Scenario()
    lines = [f"version: {VERSION}"]
    for name in ("world", "design", "images", "environment", "fault"):
        value = getattr(scenario, name)
        if value != getattr(simplest, name):
            lines.append(f"{name}: {_flow_list(value) if isinstance(value, tuple) else _scalar(value)}")
    if scenario.switches:
        lines.append(f"switches: {_flow_list(scenario.switches)}")
    if not scenario.reconnection:
        lines.append("reconnection: false")
    if scenario.devices:
        lines.append(f"devices: {_flow_list(scenario.devices)}")
    if scenario.order != ORDER_EDK2:
        lines.append(f"order: {scenario.order if isinstance(scenario.order, str) else _flow_list(scenario.order)}")
    lines.append("operations:" if scenario.operations else "operations: []")
    lines.extend(f"- {describe(step)}" for step in scenario.operations)
    return "\n".join(lines) + "\n"


def describe(step: Operation) -> str:
    """One operation as it stands in YAML: `exit`, or `exit: {map_key: stale}`."""
    fields = OPERATIONS[step.kind].fields
    given = [
        f"{field.name}: {_scalar(value)}"
        for field, value in zip(fields, step.arguments, strict=True)
        if value != default_of(field)
    ]
    return f"{step.kind}: {{{', '.join(given)}}}" if given else step.kind


def _flow_list(values: Iterable[Any]) -> str:
    return f"[{', '.join(_scalar(value) for value in values)}]"


_YAML_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_/.-]*( -> [A-Za-z0-9_-]+)?")


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = value.hex() if isinstance(value, bytes) else str(value)
    # Digits would be read as a number, and what the pattern does not know may mean something to YAML.
    if (
        isinstance(value, str)
        and _PLAIN.fullmatch(text)
        and text not in ("true", "false", "null", "yes", "no", "on", "off")
    ):
        return text
    return json.dumps(text, ensure_ascii=False)  # which YAML reads as the same text


# ---- reading ------------------------------------------------------------------------------------------------------


def load(text: str, name: str) -> Scenario:
    """The scenario that the YAML `text` describes. `name` is how messages call the file.

    Raises InputError for whatever is wrong, and nothing else.
    """
    return _Reader(name).read(text)


def near_miss(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'block'?)` where a known name is close to `word`, else nothing."""
    close = difflib.get_close_matches(word[:80], list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class _Reader:
    """Reads one text. Every method takes the node and the field's path, and gives the checked value."""

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, text: str) -> Scenario:
        if len(text.encode("utf-8", "surrogatepass")) > SIZE_MAX:
            raise InputError(f"{self.name}: larger than {SIZE_MAX} bytes, so no scenario")
        root = self._compose(text)
        if root is None:
            raise InputError(f"{self.name}: empty")
        entries = self._mapping(root, "", _KEYS, "key")
        version = entries.get("version")
        if version is None:
            self._fail(root, "version", f"missing; this program reads version {VERSION}")
        found = self._int(version, "version")
        if found != VERSION:
            self._fail(version, "version", f"{found} is not a version that this program reads ({VERSION})")
        values: dict[str, Any] = {}
        world = "platform"
        if "world" in entries:
            world = values["world"] = self._name(entries["world"], "world", WORLDS)
        designs = designs_of(world)
        if designs:
            if "design" not in entries:
                self._fail(root, "design", f"missing; one of {', '.join(designs)}")
            values["design"] = self._name(entries["design"], "design", designs)
        elif "design" in entries:
            self._fail(entries["design"], "design", f"the world {world!r} has none")
        if "images" in entries:
            values["images"] = self._images(entries["images"], world)
        if "environment" in entries:
            values["environment"] = self._name(entries["environment"], "environment", environments_of(world))
        if "switches" in entries:
            values["switches"] = self._switches(entries["switches"])
            if values["switches"] and values.get("environment", "conforming") == "conforming":
                self._fail(entries["switches"], "switches", "the conforming environment has none")
        if "fault" in entries:
            values["fault"] = self._name(entries["fault"], "fault", FAULTS)
        if "reconnection" in entries:
            values["reconnection"] = self._bool(entries["reconnection"], "reconnection")
        if "devices" in entries:
            values["devices"] = self._devices(entries["devices"])
        if "order" in entries:
            values["order"] = self._order(entries["order"])
        if "operations" not in entries:
            self._fail(root, "operations", "missing; a list, [] for none")
        values["operations"] = self._operations(entries["operations"], world)
        return scenario(**values)

    # ---- YAML itself ----------------------------------------------------------------------------------------------

    def _compose(self, text: str) -> Any:
        try:
            self._refuse_tricks(text)
            return yaml.compose(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self.name}:{mark.line + 1}" if mark else self.name
            raise InputError(f"{where}: not YAML: {error.problem or error.context}") from None
        except (yaml.YAMLError, UnicodeError) as error:
            raise InputError(f"{self.name}: not YAML: {' '.join(str(error).split())}") from None

    def _refuse_tricks(self, text: str) -> None:
        depth = documents = 0
        for event in yaml.parse(text, Loader=_LOADER):
            trick = ""
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                trick = "anchors and aliases are not allowed"
            elif getattr(event, "tag", None):
                trick = "tags are not allowed"
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                trick = "more than one document" if documents > 1 else ""
            elif isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                trick = "nested too deeply" if depth > _DEPTH_MAX else ""
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if trick:
                assert event.start_mark is not None
                raise InputError(f"{self.name}:{event.start_mark.line + 1}: {trick}")

    # ---- the parts of a scenario ----------------------------------------------------------------------------------

    def _switches(self, node: Any) -> tuple[str, ...]:
        names = [
            self._name(item, f"switches[{index}]", SWITCHES) for index, item in enumerate(self._list(node, "switches"))
        ]
        return tuple(sorted(set(names)))

    def _images(self, node: Any, world: str) -> tuple[str, ...]:
        if world != "efi-image":
            self._fail(node, "images", f"the world {world!r} has none")
        items = self._list(node, "images")
        if len(items) > MAX_IMAGES:
            self._fail(node, "images", f"{len(items)} images, at most {MAX_IMAGES}")
        names = tuple(self._text(item, f"images[{index}]") for index, item in enumerate(items))
        for index, name in enumerate(names):
            if not is_image_name(name):
                self._fail(items[index], f"images[{index}]", f"no name of an image, at most {IMAGE_SIZE_MAX} bytes")
        return names

    def _devices(self, node: Any) -> tuple[str, ...]:
        items = self._list(node, "devices")
        if len(items) > MAX_DEVICES:
            self._fail(node, "devices", f"{len(items)} devices, at most {MAX_DEVICES}")
        return tuple(self._name(item, f"devices[{index}]", DEVICE_KINDS) for index, item in enumerate(items))

    def _order(self, node: Any) -> str | tuple[int, ...]:
        if isinstance(node, yaml.ScalarNode):
            return self._name(node, "order", (ORDER_EDK2, ORDER_FIFO))
        items = self._list(node, "order")
        order = tuple(self._int(item, f"order[{index}]") for index, item in enumerate(items))
        if len(order) > MAX_ORDER or sorted(order) != list(range(len(order))):
            self._fail(node, "order", f"{list(order)} is no permutation of 0 to n-1 with n at most {MAX_ORDER}")
        return order

    def _operations(self, node: Any, world: str) -> tuple[Operation, ...]:
        items = self._list(node, "operations")
        if len(items) > MAX_OPERATIONS:
            self._fail(node, "operations", f"{len(items)} operations, at most {MAX_OPERATIONS}")
        known = operations_of(world)
        return tuple(self._operation(item, f"operations[{index}]", world, known) for index, item in enumerate(items))

    def _operation(self, node: Any, path: str, world: str, known: tuple[str, ...]) -> Operation:
        if isinstance(node, yaml.MappingNode):
            if len(node.value) != 1:
                self._fail(node, path, f"expected one operation, found {len(node.value)} keys")
            key, body = node.value[0]
        else:
            key, body = node, None
        kind = self._text(key, path)
        if kind not in known:
            if kind in OPERATIONS:
                self._fail(key, path, f"the world {world!r} has no operation {kind!r}")
            self._fail(key, path, f"unknown operation {_short(kind)}{near_miss(kind, known)}")
        path = f"{path}.{kind}"
        fields = OPERATIONS[kind].fields
        given: dict[str, Any] = {}
        if body is not None and body.tag != _NULL:
            given = self._mapping(body, path, tuple(field.name for field in fields), "field")
        arguments = [
            self._value(given[field.name], f"{path}.{field.name}", field) if field.name in given else default_of(field)
            for field in fields
        ]
        return Operation(kind, tuple(arguments))

    def _value(self, node: Any, path: str, field: Field) -> Any:
        if isinstance(field, Blob):
            return self._blob(node, path, field.size_max)
        simplest = field.values[0]
        if isinstance(simplest, str):
            return self._name(node, path, field.values)
        value: Any = self._bool(node, path) if isinstance(simplest, bool) else self._int(node, path)
        if value not in field.values:
            self._fail(node, path, f"unknown value {value} ({_which(field.values)})")
        return value

    # ---- plain values ---------------------------------------------------------------------------------------------

    def _mapping(self, node: Any, path: str, known: tuple[str, ...], what: str) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, path, f"expected a mapping, found {_found(node)}")
        entries: dict[str, Any] = {}
        for key, value in node.value:
            name = self._text(key, path)
            if name not in known:
                allowed = ", ".join(known) or "none"
                self._fail(
                    key, path, f"unknown {what} {_short(name)}{near_miss(name, known) or f' (known: {allowed})'}"
                )
            if name in entries:
                self._fail(key, path, f"{what} {name!r} stands here twice")
            entries[name] = value
        return entries

    def _list(self, node: Any, path: str) -> list[Any]:
        if not isinstance(node, yaml.SequenceNode):
            self._fail(node, path, f"expected a list, found {_found(node)}")
        items: list[Any] = node.value
        return items

    def _text(self, node: Any, path: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            self._fail(node, path, f"expected a name, found {_found(node)}")
        text: str = node.value
        return text

    def _name(self, node: Any, path: str, known: Iterable[str]) -> str:
        text = self._text(node, path)
        if text not in known:
            names = tuple(known)
            hint = near_miss(text, names)
            if not hint and len(names) <= 8:
                hint = f" ({_which(names)})" if names else " (there are none)"
            self._fail(node, path, f"unknown value {_short(text)}{hint}")
        return text

    def _int(self, node: Any, path: str) -> int:
        # Decimal only: YAML 1.1 also reads 010 as eight and 1:30 as ninety.
        if (
            not isinstance(node, yaml.ScalarNode)
            or node.tag != _INT
            or not re.fullmatch(r"-?(0|[1-9]\d{0,18})", node.value)
        ):
            self._fail(node, path, f"expected a whole number, found {_found(node)}")
        return int(node.value)

    def _bool(self, node: Any, path: str) -> bool:
        if not isinstance(node, yaml.ScalarNode) or node.tag != _BOOL or node.value not in ("true", "false"):
            self._fail(node, path, f"expected true or false, found {_found(node)}")
        return bool(node.value == "true")

    def _blob(self, node: Any, path: str, size_max: int) -> bytes:
        # The text as it stands, because digits alone are a number to YAML.
        if not isinstance(node, yaml.ScalarNode) or not re.fullmatch(r"([0-9a-fA-F]{2} ?)*", node.value):
            self._fail(node, path, f"expected hexadecimal digits, two for each byte, found {_found(node)}")
        data = bytes.fromhex(node.value)
        if len(data) > size_max:
            self._fail(node, path, f"{len(data)} bytes, at most {size_max}")
        return data

    def _fail(self, node: Any, path: str, problem: str) -> NoReturn:
        where = f"{path}: " if path else ""
        raise InputError(f"{self.name}:{node.start_mark.line + 1}: {where}{problem}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _found(node: Any) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if node.tag == _NULL else _short(node.value)


def _which(values: tuple[Any, ...]) -> str:
    first, last = values[0], values[-1]
    if isinstance(first, int) and len(values) > 2 and values == tuple(range(first, last + 1)):
        return f"{first} to {last}"
    return f"one of {', '.join(repr(value) if value == '' else str(value) for value in values)}"
