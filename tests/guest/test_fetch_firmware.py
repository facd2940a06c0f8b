"""`scripts/fetch-firmware` with an apt that the tests play, and with the real one where the network may be used."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "fetch-firmware"
ARCHIVES = ["first.example", "second.example"]

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb on this machine")

# Plays apt-get: writes down how it was called and with which files, and answers as `plan.json` says.
APT = """\
#!{python}
import json, pathlib, shutil, sys
home = pathlib.Path({home!r})
plan = json.loads((home / "plan.json").read_text())
arguments = sys.argv[1:]
call = {{"arguments": arguments}}
if arguments[0] == "--config-file":
    configuration = pathlib.Path(arguments[1])
    call["configuration"] = configuration.read_text()
    call["sources"] = (configuration.parent / "sources.list").read_text()
with (home / "calls").open("a") as file:
    file.write(json.dumps(call) + "\\n")
if arguments[0] == "indextargets":
    print("\\n".join(plan["archives"]))
    sys.exit(0)
suite = call["sources"].split()[-2]
archive = call["sources"].split()[-3]
verb = "update" if "update" in arguments else "download"
for failing, where, status, complaint in plan["failures"]:
    if failing == verb and where in (archive, ""):
        print(complaint, file=sys.stderr)
        sys.exit(status)
if verb == "download":
    shutil.copy(home / f"{{suite}}.deb", "ovmf_1_all.deb")
"""


class Machine:
    """A machine with packages for two suites, and what was asked of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cache = home / "cache"
        self.sums = home / "sums"
        self.plan(archives=ARCHIVES)
        lines = []
        for suite in ("bookworm", "bullseye"):
            content = f"firmware of {suite}".encode()
            self.package(suite, content)
            lines.append(f"{hashlib.sha256(content).hexdigest()}  {suite}/OVMF.fd\n")
        self.sums.write_text("".join(lines))
        (home / "bin").mkdir()
        apt = home / "bin" / "apt-get"
        apt.write_text(APT.format(python=sys.executable, home=str(home)))
        apt.chmod(0o755)

    def plan(self, archives=(), failures=()):
        """What the next calls of apt find."""
        (self.home / "plan.json").write_text(json.dumps({"archives": list(archives), "failures": list(failures)}))

    def package(self, suite, content, file="OVMF.fd"):
        """Make the suite's package."""
        tree = self.home / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            "Package: ovmf\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example>\nDescription: a test\n"
        )
        (tree / "usr/share/OVMF").mkdir(parents=True)
        (tree / "usr/share/OVMF" / file).write_bytes(content)
        made = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(self.home / f"{suite}.deb")]
        subprocess.run(made, check=True, capture_output=True)

    def run(self, *arguments, path=None):
        """Run the script: exit status, standard output, standard error."""
        path = f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}" if path is None else path
        done = subprocess.run(
            [sys.executable, SCRIPT, "--cache", self.cache, "--sums", self.sums, *arguments],
            env={**os.environ, "PATH": path, "TMPDIR": str(self.temporary())},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    def temporary(self):
        """Where the script puts what it needs for a moment."""
        folder = self.home / "temporary"
        folder.mkdir(exist_ok=True)
        return folder

    def calls(self):
        """How apt was called since the last time."""
        file = self.home / "calls"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return found


@pytest.fixture
def machine(tmp_path):
    """A machine whose apt works."""
    return Machine(tmp_path)


def test_the_cache_is_filled_once(machine):
    """The first call gets what is missing and says so; after that there is nothing to do and nothing to say."""
    status, out, err = machine.run()
    assert (status, out) == (0, "")
    assert err.splitlines() == [
        f"fetch-firmware: {suite}: OVMF.fd in {machine.cache / suite}" for suite in ("bookworm", "bullseye")
    ]
    found = {path.relative_to(machine.cache): path.read_bytes() for path in machine.cache.rglob("*") if path.is_file()}
    assert found == {
        Path("bookworm/OVMF.fd"): b"firmware of bookworm",
        Path("bullseye/OVMF.fd"): b"firmware of bullseye",
    }
    assert machine.calls()
    assert machine.run() == (0, "", "")
    assert machine.calls() == []


def test_only_what_is_missing_or_damaged_is_fetched(machine):
    """A file whose sum is wrong is fetched again, and the rest stays."""
    machine.run()
    machine.calls()
    (machine.cache / "bullseye" / "OVMF.fd").write_bytes(b"damaged")
    assert machine.run()[0] == 0
    assert {call["sources"].split()[-2] for call in machine.calls() if "sources" in call} == {"bullseye"}
    assert (machine.cache / "bullseye" / "OVMF.fd").read_bytes() == b"firmware of bullseye"


def test_apt_runs_with_a_state_of_its_own(machine):
    """Every folder that apt writes to, and its sources, lie in a folder that is gone afterwards; hooks are off."""
    machine.run()
    fetching = [call for call in machine.calls() if call["arguments"][0] == "--config-file"]
    assert len(fetching) == 4
    for call in fetching:
        settings = dict(
            line.rstrip(";").replace('"', "").split(" ", 1)
            for line in call["configuration"].splitlines()
            if line.startswith("Dir::")
        )
        private = Path(call["arguments"][1]).parent
        assert private.parent == machine.temporary()
        assert set(settings) >= {"Dir::State", "Dir::State::lists", "Dir::Cache", "Dir::Cache::archives"}
        assert set(settings) >= {"Dir::Etc::sourcelist", "Dir::Etc::sourceparts", "Dir::State::status"}
        assert all(Path(path).is_relative_to(private) for path in settings.values())
        for hook in ("APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Post-Invoke"):
            assert f"#clear {hook};" in call["configuration"]
    assert list(machine.temporary().iterdir()) == []


def test_the_archive_is_one_of_the_machine_itself(machine):
    """The suites are asked of the archives that the machine's sources name, in their order, until one has them."""
    machine.plan(ARCHIVES, [("update", ARCHIVES[0], 100, "E: The repository has no Release file.")])
    assert machine.run()[0] == 0
    asked = [call["sources"].split()[-3:] for call in machine.calls() if "sources" in call]
    assert asked[:3] == [[archive, "bookworm", "main"] for archive in (ARCHIVES[0], ARCHIVES[1], ARCHIVES[1])]
    listing = subprocess.run(
        ["grep", "-nE", "https?://|deb [a-z]", SCRIPT], capture_output=True, text=True, check=False
    )
    assert listing.stdout == ""


@pytest.mark.parametrize(
    ("archives", "failure", "message"),
    [
        ([], None, "the machine's apt sources name no archive"),
        (ARCHIVES, ("update", "", 100, "noise\nE: no   Release file\nE: more"), "apt-get: E: no Release file"),
        (ARCHIVES, ("update", "", 0, "W: Failed to fetch x  y"), "apt-get: W: Failed to fetch x y"),
        (
            ARCHIVES,
            ("download", "", 100, "E: Unable to locate package ovmf"),
            "apt-get: E: Unable to locate package ovmf",
        ),
        (ARCHIVES, ("download", "", 3, ""), "apt-get: exit status 3"),
    ],
)
def test_what_is_not_available_is_said_in_one_line_each(machine, archives, failure, message):
    """Exit status 1 and a line for each suite; nothing is left in the cache."""
    machine.plan(archives, [failure] if failure else [])
    status, out, err = machine.run()
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        f"fetch-firmware: {suite}: not available: {message}" for suite in ("bookworm", "bullseye")
    ]
    assert not list(machine.cache.rglob("*"))
    assert list(machine.temporary().iterdir()) == []


def test_a_machine_without_apt_is_said(machine, tmp_path):
    """Where there is no apt-get, the line says so."""
    (tmp_path / "none").mkdir()
    status, _, err = machine.run(path=str(tmp_path / "none"))
    assert status == 1
    assert err.splitlines()[0] == "fetch-firmware: bookworm: not available: apt-get: No such file or directory"


def test_other_firmware_than_the_listed_is_refused(machine):
    """A package whose file has another sum, or that has no such file, does not get into the cache; the other suite does."""
    machine.package("bullseye", b"something else")
    status, _, err = machine.run()
    assert status == 1
    assert "bullseye: not available: OVMF.fd of ovmf_1 is not the file that scripts/firmware.sha256 lists" in err
    assert [path.parent.name for path in machine.cache.rglob("OVMF.fd")] == ["bookworm"]
    machine.package("bullseye", b"", file="OTHER.fd")
    assert "bullseye: not available: no OVMF.fd in ovmf_1_all.deb" in machine.run()[2]


def test_wrong_usage_is_refused(machine):
    """An option that does not exist ends with status 2."""
    assert machine.run("--nonsense")[0] == 2


def hashes(*folders):
    """Every file below the folders with its hash, its mode and the time of its last change."""
    return {
        path: (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.is_file() and hashlib.sha256(path.read_bytes()).digest(),
        )
        for folder in folders
        for path in Path(folder).rglob("*")
        if os.access(path, os.R_OK)
    }


@pytest.mark.skipif(not os.environ.get("EBSFUZZ_TEST_NETWORK"), reason="needs the network: set EBSFUZZ_TEST_NETWORK=1")
def test_the_real_apt_stays_as_it_was(tmp_path):
    """The real firmware comes, and apt's configuration, lists and cache are the same afterwards, to the byte."""
    folders = ("/etc/apt", "/var/lib/apt", "/var/cache/apt")
    before = hashes(*folders)
    done = subprocess.run([SCRIPT, "--cache", tmp_path], capture_output=True, text=True, timeout=300)
    assert hashes(*folders) == before
    if done.returncode == 1:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr
    assert sorted(path.parent.name for path in tmp_path.rglob("*.fd")) == ["bookworm", "bullseye"]
