"""What is said about an image by its file, as text and as JSON, and the command that says it."""

import dataclasses
import json
import uuid

import pytest

import guest
from campaign.cli import call
from fuzz_targets.image_builder import DATA_PART, TEXT_PART, pe, relocation_block, te, volume
from guest import files, well_known
from guest.inspect import describe
from reference_impl.uefi import guids

BLOCK_IO = uuid.UUID(guids.BLOCK_IO_PROTOCOL).bytes_le
PCI_IO = uuid.UUID("4cf5b200-68b8-4ca5-9eec-b23e3f50029a").bytes_le
WITH_GUIDS = dataclasses.replace(DATA_PART, data=b"x" + PCI_IO + BLOCK_IO + PCI_IO)

TEXT = """\
driver: PE32+ for X64, boot service driver
  size in memory  0x4000 bytes, aligned to 0x1000
  entry point     +0x1000
  loads           anywhere (1 relocations)
  names           none (no .map or .debug beside it)
  sections
    .text     +0x1000   0x1000    r-x  4 bytes in the file
    .data     +0x2000   0x1000    rw-  49 bytes in the file
    .reloc    +0x3000   0x1000    rw-  10 bytes in the file
  known GUIDs in its data
    BLOCK_IO  964e5b21-6459-11d2-8e39-00a0c969723b  +0x2011
    PCI_IO    4cf5b200-68b8-4ca5-9eec-b23e3f50029a  +0x2001, +0x2021
"""


@pytest.fixture
def path(tmp_path):
    """A driver that has to do with two protocols."""
    file = tmp_path / "driver.efi"
    file.write_bytes(pe([TEXT_PART, WITH_GUIDS], relocation_block(0x2000, [(0, 10)])))
    return file


def test_the_report_for_people(path, capsys):
    """Form, size, sections, and each known GUID with its places; exit status 0."""
    assert call(["inspect", str(path)]) == 0
    out, err = capsys.readouterr()
    assert (out[: len(TEXT)], err) == (TEXT, "")
    assert out[len(TEXT) :].startswith("  started here    ")


def test_the_report_for_programs(path, capsys):
    """With --format json the same is one JSON object."""
    assert call(["inspect", str(path), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == json.loads(json.dumps(describe(str(path)).as_object()))
    assert (found["name"], found["form"], found["machine"], found["entry_point"]) == ("driver", "PE32+", "X64", 0x1000)
    assert found["sections"][1] == {
        "name": ".data",
        "rva": 0x2000,
        "virtual_size": 0x1000,
        "file_size": 49,
        "access": "rw-",
    }
    assert found["guids"] == [
        {"name": "BLOCK_IO", "guid": guids.BLOCK_IO_PROTOCOL, "rvas": [0x2011]},
        {"name": "PCI_IO", "guid": str(uuid.UUID(bytes_le=PCI_IO)), "rvas": [0x2001, 0x2021]},
    ]
    assert err == ""


def test_an_image_with_nothing_to_tell(tmp_path):
    """An image that cannot be moved and knows no protocol says so; a section without a name is shown as that."""
    file = tmp_path / "x.efi"
    file.write_bytes(te([dataclasses.replace(TEXT_PART, name=b"")], subsystem=12))
    lines = list(describe(str(file)).lines())
    assert lines[0] == "x: TE for X64, runtime driver"
    assert "  loads           at 0x110000 only (relocations are stripped)" in lines
    place = lines.index("  known GUIDs in its data: none")
    assert lines[place - 1].startswith("    (no name)")


def test_names_beside_the_image_are_counted(path):
    """A map file beside the image is found."""
    path.with_suffix(".map").write_text("Linker script and memory map\n                0x0000000000001000    Entry\n")
    found = describe(str(path))
    assert found.symbols == 1
    assert "  names           1" in list(found.lines())


def test_what_cannot_be_inspected_is_said_in_one_line(tmp_path, capsys):
    """A wrong image is the user's to mend: status 2."""
    (tmp_path / "x.efi").write_bytes(pe(machine=0xAA64))
    assert call(["inspect", str(tmp_path / "x.efi")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"ebsfuzz: {tmp_path / 'x.efi'}: offset 0x84: expected machine X64")
    assert err.count("\n") == 1


def test_a_missing_extra_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    """Without what reads volumes, the command says what to install: status 3. Plain images need nothing."""

    def refuse(name):
        raise ImportError(f"No module named {name!r}")

    (tmp_path / "x.fd").write_bytes(volume() + b"\7")
    (tmp_path / "x.efi").write_bytes(pe())
    monkeypatch.setattr(guest.importlib, "import_module", refuse)
    assert call(["inspect", f"{tmp_path / 'x.fd'}:Y"]) == 3
    assert "pip install 'ebsfuzz[efi]'" in capsys.readouterr().err
    assert call(["inspect", str(tmp_path / "x.efi")]) == 0


def test_every_guid_has_one_name():
    """No GUID and no name is there twice, each is in the registry's text form, and the model's own names win."""
    names = well_known.NAMES
    assert len(set(names.values())) == len(names)
    assert all(str(uuid.UUID(guid)) == guid for guid in names)
    assert all(names[guid] == name for guid, name in guids.NAMES.items())


def test_guids_are_those_that_others_know():
    """Where uefi_firmware's tables have a GUID under a name, it is ours, but for spelling and two renamings."""
    tables = pytest.importorskip("uefi_firmware.guids", reason="the extra 'efi' is not installed")
    theirs = {}
    for table in tables.get_tables():
        for name, (first, second, third, *rest) in table.items():
            guid = str(
                uuid.UUID(fields=(first, second, third, rest[0], rest[1], int.from_bytes(bytes(rest[2:]), "big")))
            )
            theirs.setdefault(guid, []).append(name.replace("_", ""))
    compared = [(name, theirs[guid]) for guid, name in well_known.NAMES.items() if guid in theirs]
    assert len(compared) > 70
    different = {name for name, known in compared if not any(name.replace("_", "") in one for one in known)}
    assert different <= {"PI_PCD", "EVENT_GROUP_END_OF_DXE", *guids.NAMES.values()}


def test_the_shipped_bus_driver_is_described():
    """The real XenBusDxe has what it consumes and produces in its data."""
    pytest.importorskip("uefi_firmware", reason="the extra 'efi' is not installed")
    if not (files.CACHE / "bullseye" / "OVMF_CODE_4M.fd").is_file():
        pytest.skip("no firmware in .cache/firmware; ./scripts/fetch-firmware gets it")
    names = {one.name for one in describe("bullseye/OVMF_CODE_4M.fd:XenBusDxe").guids}
    assert names >= {"XENIO", "XENBUS", "XEN_INFO", "DRIVER_BINDING", "DEVICE_PATH", "HOB_LIST", "PCD"}
