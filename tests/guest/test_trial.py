"""What is seen when an image is started in a world of its own."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from campaign.cli import call
from fuzz_targets.image_builder import TEXT_PART, pe, te
from guest import trial
from guest.trial import Trial, Use, try_image
from guest.world import FIRMWARE
from reference_impl.uefi import guids
from tests.guest.firmware import need_firmware

SUCCEEDS = b"\x31\xc0\xc3"  # xor eax, eax; ret
REFUSES = b"\x48\xb8\x03\0\0\0\0\0\0\x80\xc3"  # mov rax, EFI_UNSUPPORTED; ret
READS_NULL = b"\x48\x8b\x04\x25\x10\0\0\0\xc3"  # mov rax, [0x10]
DIVIDES = b"\x31\xc9\x31\xd2\xf7\xf1\xc3"  # by zero
TURNS = b"\xeb\xfe"  # jmp to itself
STOPS = b"\xf4\xc3"  # hlt
USES_A_PORT = b"\xba\x10\x05\0\0\xec\x31\xc0\xc3"  # in al, 0x510
JUMPS_AWAY = b"\x48\xb8\0\0\0\0\0\xff\0\0\xff\xe0"  # jmp to nowhere
RESETS = (
    b"\x48\x8b\x42\x58"  # mov rax, [rdx+88], the runtime services
    b"\x48\x83\xec\x28\xff\x50\x68"  # call [rax+104], ResetSystem
)
LOADS_AN_IMAGE = (
    b"\x48\x8b\x42\x60"  # mov rax, [rdx+96], the boot services
    b"\x48\x83\xec\x38\xff\x90\xc8\0\0\0"  # call [rax+200], LoadImage
    b"\x48\x83\xc4\x38\x31\xc0\xc3"
)


@pytest.fixture
def image(tmp_path):
    """Makes an image of some code; no other image is there."""

    def make(code):
        path = tmp_path / "driver.efi"
        path.write_bytes(pe([dataclasses.replace(TEXT_PART, data=code)]))
        return str(path)

    return make


@pytest.mark.parametrize(
    ("code", "starts", "outcome"),
    [
        (SUCCEEDS, True, "its entry point answers EFI_SUCCESS"),
        (REFUSES, False, "its entry point answers EFI_UNSUPPORTED"),
        (READS_NULL, False, "its entry point ends in a fault: read of 0x10 at driver+0x1000"),
        (DIVIDES, False, "its entry point ends in a fault: exception (divide error) at driver+0x10"),
        (TURNS, False, "its entry point ends in a fault: dead-loop at driver+0x1000"),
        (STOPS, False, "its entry point ends in a fault: halt at driver+0x10"),
        (JUMPS_AWAY, False, "its entry point ends in a fault: fetch of 0xff0000000000"),
        (RESETS, False, "its entry point resets the system"),
    ],
    ids=["succeeds", "refuses", "null", "divides", "turns", "stops", "jumps", "resets"],
)
def test_whatever_an_entry_point_does_is_told(image, tmp_path, code, starts, outcome):
    """Nothing that it can do ends ebsfuzz."""
    found = try_image(image(code), tmp_path)
    assert (found.starts, found.outcome[: len(outcome)]) == (starts, outcome)


def test_image_that_cannot_be_loaded_here_says_why(tmp_path):
    """Where its relocations are stripped, and where there is no room for it."""
    path = tmp_path / "driver.efi"
    path.write_bytes(te([TEXT_PART]))
    assert try_image(str(path), tmp_path).outcome.startswith("it cannot be loaded here: driver: its relocations are")
    path.write_bytes(pe([dataclasses.replace(TEXT_PART, virtual_size=8 << 20)], size_of_image=9 << 20))
    assert try_image(str(path), tmp_path).outcome.startswith("it cannot be loaded here: driver: no room for its")


def test_what_is_not_here_is_lacking(image, tmp_path):
    """A port where nothing is, and a service that is not modelled."""
    assert try_image(image(USES_A_PORT), tmp_path).lacks == ["I/O port 0x510 (at driver+0x1000)"]
    assert try_image(image(LOADS_AN_IMAGE), tmp_path).lacks == ["service LoadImage"]


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the emulator crashed with it (SIGSEGV)"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)",
            "it did not come back within 60 seconds of processor time",
        ),
        ("import time; time.sleep(600)", "it did not come back within 0.5 seconds"),
    ],
    ids=["crash", "limit", "hang"],
)
def test_process_that_is_lost_is_an_outcome(image, tmp_path, monkeypatch, code, outcome):
    """A crashed or hanging emulator costs nothing but the answer."""
    run = trial.subprocess.run
    monkeypatch.setattr(trial, "PATIENCE_S", 0.5 if "sleep" in code else 600)
    monkeypatch.setattr(trial.subprocess, "run", lambda command, **more: run([sys.executable, "-c", code], **more))
    assert try_image(image(SUCCEEDS), tmp_path) == Trial(False, outcome)


def test_process_that_fails_by_itself_is_an_error(image, tmp_path, monkeypatch):
    """A bug of ours is not taken for one of the image."""
    run = trial.subprocess.run
    monkeypatch.setattr(trial.subprocess, "run", lambda command, **more: run([sys.executable, "-c", "1/0"], **more))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        try_image(image(SUCCEEDS), tmp_path)


def test_without_the_emulator_it_says_what_to_install(image, monkeypatch):
    """What stands in the file is told all the same."""

    def missing(module):
        raise trial.ExtraMissing("install it")

    monkeypatch.setattr(trial, "require", missing)
    assert try_image(image(SUCCEEDS)) == Trial(False, "install it")


def test_shipped_bus_driver_is_started_on_a_bus():
    """Its protocols, and the one event at which tianocore/edk2#9802 happens."""
    need_firmware()
    found = try_image(f"{FIRMWARE}:XenBusDxe")
    assert found.starts
    assert (found.bindings, found.controllers) == (1, {"Xen bus": "EFI_SUCCESS"})
    assert Use("XENIO", guids.XENIO_PROTOCOL, ["opened"], True) in found.consumes
    assert found.produces[guids.XENBUS_PROTOCOL] == "XENBUS"
    assert [dataclasses.astuple(event) for event in found.exit_events] == [
        ("EXIT_BOOT_SERVICES", "TPL_CALLBACK", "XenBusDxe+0x2af", "Start on the Xen bus")
    ]
    assert found.lacks == []


@pytest.mark.parametrize(
    ("name", "controller", "product"),
    [
        ("XenIoPciDxe", "Xen platform device", "XENIO"),
        ("XenPvBlkDxe", "Xen block device", "BLOCK_IO"),
        ("UhciDxe", "USB UHCI controller", "USB2_HC"),
        ("EhciDxe", "USB EHCI controller", "USB2_HC"),
        ("XhciDxe", "USB xHCI controller", "USB2_HC"),
    ],
)
def test_drivers_are_started_where_they_are_at_home(name, controller, product):
    """Each finds its controller among those that are modelled."""
    need_firmware()
    found = try_image(f"{FIRMWARE}:{name}")
    assert found.controllers[controller] == "EFI_SUCCESS"
    assert product in found.produces.values()


def test_report_shows_what_was_seen(capsys):
    """As text, and as JSON under "trial"; exit status 0."""
    need_firmware()
    spec = f"{FIRMWARE}:UhciDxe"
    assert call(["inspect", spec]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  started here    yes: its entry point answers EFI_SUCCESS" in lines
    assert "    Start on the USB UHCI controller: EFI_SUCCESS" in lines
    assert "    4cf5b200-68b8-4ca5-9eec-b23e3f50029a  PCI_IO  opened" in lines
    assert lines[lines.index("  exit events when started") + 1].startswith(
        "    EXIT_BOOT_SERVICES at TPL_NOTIFY: UhciDxe+0x"
    )
    assert call(["inspect", spec, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["trial"]
    assert (found["starts"], found["bindings"]) == (True, 1)
    assert found["exit_events"][0]["tpl"] == "TPL_NOTIFY"


def test_driver_that_cannot_be_started_says_what_it_lacks():
    """The protocols that it looked for in vain."""
    need_firmware()
    found = try_image(f"{FIRMWARE}:SmbiosPlatformDxe")
    assert not found.starts
    assert any("03583ff6-cb36-4940-947e-b9b39f4afaf7" in lack for lack in found.lacks)  # EFI_SMBIOS_PROTOCOL
