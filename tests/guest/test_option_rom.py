import struct

import pytest

from fuzz_targets.image_builder import option_rom as rom
from fuzz_targets.image_builder import pe
from guest import option_rom
from guest.image import ImageError

BIOS = rom(b"\x90" * 100, code_type=0, last=False)


@pytest.mark.parametrize("before", [b"", BIOS, rom(pe(), machine=0xAA64, last=False)], ids=["alone", "BIOS", "AArch64"])
def test_the_efi_image_for_x64_is_found(before):
    """The first EFI image for X64 counts, wherever in the chain it is."""
    data = before + rom(pe())
    assert option_rom.is_option_rom(data)
    found = option_rom.efi_image(data, "x.rom")
    assert found.startswith(pe())
    assert not any(found[len(pe()) :])  # a ROM is padded to blocks


def test_a_compressed_image_is_decompressed():
    """Compression as UEFI defines it is undone."""
    compressor = pytest.importorskip("uefi_firmware.efi_compressor", reason="the extra 'efi' is not installed")
    packed = compressor.EfiCompress(pe(), len(pe()))
    assert option_rom.efi_image(rom(packed, compression=1), "x.rom") == pe()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BIOS[:-1] + b"\0", r"offset 0x200: expected an option ROM's header \(55 aa\)"),
        (rom(pe())[:20], "offset 0x0: expected an option ROM's header"),
        (rom(pe(), pcir=b"RICP"), "offset 0x1c: expected the header PCIR"),
        (rom(pe())[:0x30], "offset 0x1c: expected the header PCIR"),
        (rom(pe(), signature=0xEF2), "offset 0x4: expected the EFI signature 0xef1, found 0xef2"),
        (rom(pe(), compression=2), "offset 0xc: expected compression 0 or 1, found 2"),
        (rom(pe(), blocks=0), "offset 0x0: expected an image of 0x38 to 0x0 within the file"),
        (rom(pe(), blocks=9), "offset 0x0: expected an image of 0x38 to 0x1200 within the file"),
        (rom(b"", code_type=0), "no EFI image for X64 in this option ROM; it has one for PC BIOS"),
        (
            rom(b"", code_type=1, last=False) + rom(b"", machine=0xEBC),
            "it has one of type 1, one for EFI byte code",
        ),
        (rom(struct.pack("<II", 500, 100), compression=1), "expected at most 448 compressed bytes .* found 500 of 100"),
        (rom(struct.pack("<II", 5, 1 << 31), compression=1), "of at most 16777216, found 5 of 2147483648"),
        (rom(struct.pack("<II", 5, 0), compression=1), "found 5 of 0"),
        pytest.param(bytes((16 << 20) + 1), "an option ROM has at most 16777216", id="large"),
    ],
)
def test_a_broken_rom_is_refused_with_one_line(data, message):
    """What is no ROM, has no image for X64, or has a broken chain, is refused, and the line says where and why."""
    with pytest.raises(ImageError, match=message) as caught:
        option_rom.efi_image(data, "x.rom")
    assert str(caught.value).startswith("x.rom: ")
    assert "\n" not in str(caught.value)


def test_broken_compressed_data_is_refused():
    """What the decompressor cannot use is refused like any other mistake."""
    pytest.importorskip("uefi_firmware", reason="the extra 'efi' is not installed")
    data = rom(struct.pack("<II", 60, 5000) + b"\xff" * 60, compression=1)
    with pytest.raises(ImageError, match=r"x.rom: offset 0x38: compressed data is broken"):
        option_rom.efi_image(data, "x.rom")


def test_wrong_decompressed_size_is_refused(monkeypatch):
    """A decompressor that gives another size than the header says is not believed."""
    compressor = pytest.importorskip("uefi_firmware.efi_compressor", reason="the extra 'efi' is not installed")
    monkeypatch.setattr(compressor, "EfiDecompress", lambda data, size: b"abc")
    packed = compressor.EfiCompress(pe(), len(pe()))
    with pytest.raises(ImageError, match=f"expected {len(pe())} decompressed bytes, found 3"):
        option_rom.efi_image(rom(packed, compression=1), "x.rom")
