"""What must hold for the files of the repository as a whole."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import oracles

ROOT = Path(__file__).parent.parent

_REGISTRIES = (("pypi", "org"), ("pythonhosted", "org"), ("crates", "io"), ("npmjs", "org"), ("npmjs", "com"))
_HOSTS = [".".join(parts) for parts in _REGISTRIES]
"""Put together here, so that this file does not contain them either."""

_MACHINE_PATH = re.compile(r"(?<![\w.~-])/" + r"(?:work|home|root|Users|tmp/(?:probe|bash_jobs))/[\w.]")
"""An absolute path that exists on one machine only."""

_PLACE_IN_A_SOURCE = re.compile(r"§[\d.]*\d|[\w/]+\.h\b|[\w-]+/[\w-]+#\d+|UEFI \d+\.\d+")
"""A section, a header, an issue, or the specification with its version."""


def tracked_files() -> list[str]:
    """Every file that git tracks."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("this is no git checkout")
    return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


def oracle_modules() -> list[str]:
    """Names of the modules in `oracles` that define `check`, or `compare` where they need several runs."""
    return [
        module.name
        for module in pkgutil.iter_modules(oracles.__path__)
        if any(
            isinstance(node, ast.FunctionDef) and node.name in ("check", "compare")
            for node in ast.parse((ROOT / "oracles" / f"{module.name}.py").read_text("utf-8")).body
        )
    ]


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    """A clone works anywhere: where packages come from and where the checkout lies is the user's business."""
    found = []
    for name in tracked_files():
        text = (ROOT / name).read_bytes().decode("utf-8", "replace")
        for number, line in enumerate(text.splitlines(), 1):
            if any(host in line for host in _HOSTS) or _MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("place", ["work", "home", "root", "Users"])
def test_a_path_of_one_machine_is_recognised(place: str) -> None:
    """Absolute paths under the usual places are seen; the same words inside other paths are none."""
    for line in ("see /{}/main/x", "'/{}/somebody'", "cd /{}/.venv/bin"):
        assert _MACHINE_PATH.search(line.format(place))
    for line in ("https://example.net/{}/x", "frame/{}/x", "../{}/x", "~/{}/x", "/{}"):
        assert not _MACHINE_PATH.search(line.format(place))


def test_every_oracle_module_is_registered() -> None:
    """A module with `check` is asked about every run, the one with `compare` by the harness."""
    registered = {name.replace("-", "_") for name in oracles.ORACLES} | {"order_independence"}
    assert set(oracle_modules()) == registered


@pytest.mark.parametrize("name", oracle_modules())
def test_every_oracle_names_its_sources(name: str) -> None:
    """The docstring says where each rule stands, so that a reader need not take the rule's word for it."""
    module = sys.modules[f"oracles.{name}"]
    docstring = module.__doc__ or ""
    assert name.replace("_", "-") == module.ORACLE
    for rule, (source, sentence) in oracles.RULES[module.ORACLE].items():
        places = _PLACE_IN_A_SOURCE.findall(source)
        assert places, f"{rule}: {source!r} names no place that one could look up"
        missing = [place for place in places if place not in docstring]
        assert not missing, f"{rule}: {', '.join(missing)} is missing in the docstring of oracles/{name}.py"
        assert re.fullmatch(r"[A-Z].*\.", sentence), f"{rule}: {sentence!r} is no sentence"


@pytest.mark.parametrize("name", oracle_modules())
def test_every_rule_that_an_oracle_reports_is_in_the_table(name: str) -> None:
    """Findings take source and sentence from `RULES`; a rule that is written down anywhere in the code is a key of it."""
    tree = ast.parse((ROOT / "oracles" / f"{name}.py").read_text("utf-8"))
    reported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
            assert isinstance(node.args[0], ast.Name), "the oracle's name comes from ORACLE"
            reported.add(ast.unparse(node.args[1]))
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "RULES":
            reported.add(ast.unparse(node.slice))
    assert reported, "no finding is made"
    rules = oracles.RULES[name.replace("_", "-")]
    assert all(word == "rule" or ast.literal_eval(word) in rules for word in reported)


def test_the_license_is_the_one_that_the_package_declares() -> None:
    """pyproject.toml, LICENSE and edk2 agree: BSD-2-Clause-Patent."""
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert 'license = "BSD-2-Clause-Patent"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert "SPDX-License-Identifier: BSD-2-Clause-Patent" in text
    assert "the ebsfuzz contributors" in text
    assert "patent license" in text
