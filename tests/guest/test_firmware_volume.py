import logging

import pytest

import guest
from fuzz_targets.image_builder import firmware_file, pe, te, volume
from guest import ExtraMissing, firmware_volume
from guest.image import ImageError, parse

XENBUS, OTHER, THIRD = (f"565ec8ba-a484-11e3-802b-b8ac6f7d65{number}" for number in ("e6", "e7", "e8"))
BROKEN = volume(firmware_file(XENBUS, "XenBusDxe", pe()))[:70]


@pytest.fixture(autouse=True)
def _extra():
    pytest.importorskip("uefi_firmware", reason="the extra 'efi' is not installed")


def test_modules_of_a_volume():
    """Each file with an executable section is a module: GUID, name, kind, size and bytes, in the volume's order."""
    data = volume(
        firmware_file(XENBUS, "XenBusDxe", pe()),
        firmware_file(OTHER, "", te(), kind=6, section=0x12),
        firmware_file(THIRD, "Shell", pe(), kind=9),
        firmware_file(THIRD, "Data", None, kind=2),
    )
    assert firmware_volume.is_volume(data)
    found = firmware_volume.modules(data)
    assert [(one.guid, one.name, one.kind, one.size) for one in found] == [
        (XENBUS, "XenBusDxe", "driver", len(pe())),
        (OTHER, "", "PEI module", len(te())),
        (THIRD, "Shell", "application", len(pe())),
    ]
    assert [one.image for one in found] == [pe(), te(), pe()]
    assert repr(found[0]) == f"Module('{XENBUS}', 'XenBusDxe', 'driver', {len(pe())})"
    parse(found[1].image, found[1].guid)


def test_volumes_inside_files_are_looked_into():
    """A volume in a section of a file, as OVMF has them, gives its modules too."""
    inner = volume(firmware_file(XENBUS, "XenBusDxe", pe()))
    outer = volume(firmware_file(OTHER, "", inner, kind=0x0B, section=0x17), firmware_file(THIRD, "Last", pe()))
    assert [one.name for one in firmware_volume.modules(outer)] == ["XenBusDxe", "Last"]


def test_a_module_is_found_by_name_and_by_guid():
    """Names are as they are written; a GUID may be in capital letters."""
    data = volume(firmware_file(XENBUS, "XenBusDxe", pe()), firmware_file(OTHER, "Other", te()))
    for wanted in ("XenBusDxe", XENBUS, XENBUS.upper()):
        assert firmware_volume.module(data, wanted).guid == XENBUS


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("XenBusDx", r"x.fd: no module 'XenBusDx' \(did you mean 'XenBusDxe'\?\)"),
        ("xenbusdxe", r"did you mean 'XenBusDxe'\?"),
        (XENBUS[:-1] + "0", rf"no module .* \(did you mean .*'{XENBUS}'"),
        ("Zzz", "no module 'Zzz'; it has 2 modules"),
    ],
)
def test_an_unknown_module_is_answered_with_near_misses(wanted, message):
    """The line suggests names that come near."""
    data = volume(firmware_file(XENBUS, "XenBusDxe", pe()), firmware_file(OTHER, "", te()))
    with pytest.raises(ImageError, match=message):
        firmware_volume.module(data, wanted, "x.fd")


def test_a_name_for_two_different_modules_is_refused():
    """Where a name stands for several, the line lists their GUIDs; two copies of the same bytes are one module."""
    data = volume(firmware_file(XENBUS, "Same", pe()), firmware_file(OTHER, "Same", te()))
    with pytest.raises(ImageError, match=f"2 modules are called 'Same'; say which by its GUID: {XENBUS}, {OTHER}"):
        firmware_volume.module(data, "Same", "x.fd")
    data = volume(firmware_file(XENBUS, "Same", pe()), firmware_file(OTHER, "Same", pe()))
    assert firmware_volume.module(data, "Same").guid == XENBUS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(100), "x.fd: expected a firmware volume, found none at the beginning"),
        (b"", "x.fd: expected a firmware volume, found none"),
        (BROKEN, r"x.fd: cannot be read as firmware: error: unpack requires a buffer"),
        (bytes(firmware_volume.SIZE_MAX + 1), "x.fd: 67108865 bytes; firmware has at most 67108864"),
    ],
    ids=["zeros", "nothing", "cut", "large"],
)
def test_what_is_no_firmware_is_refused(data, message):
    """One line, and nothing of what the package says itself."""
    with pytest.raises(ImageError, match=message) as caught:
        firmware_volume.modules(data, "x.fd")
    assert "\n" not in str(caught.value)


def test_nothing_is_printed_and_logging_stays_as_it_was(capsys):
    """The package that reads volumes prints and logs; neither reaches the user or the rest of the process."""
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(ImageError):
        firmware_volume.modules(BROKEN + b"\1", "x.fd")
    firmware_volume.modules(volume(firmware_file(XENBUS, "Quiet", pe()), b"\1" * 24), "x.fd")
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


def test_a_failure_of_the_package_is_a_refusal(monkeypatch):
    """Whatever the package raises on a broken file, the user gets one line."""
    monkeypatch.setattr(firmware_volume, "_modules_in", lambda firmware: 1 / 0)
    with pytest.raises(ImageError, match=r"x.fd: cannot be read as firmware: ZeroDivisionError: division by zero"):
        firmware_volume.modules(volume(firmware_file(XENBUS, "A", pe())) + b"\2", "x.fd")


def test_a_missing_extra_is_said(monkeypatch):
    """Without the extra the message says what to install."""

    def refuse(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(guest.importlib, "import_module", refuse)
    with pytest.raises(ExtraMissing, match=r"need uefi_firmware, .* the extra 'efi': pip install 'ebsfuzz\[efi\]'"):
        firmware_volume.modules(volume(firmware_file(XENBUS, "B", pe())) + b"\3", "x.fd")
