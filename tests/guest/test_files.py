"""Which image a specification names: files, option ROMs, modules of volumes, the cache, and the real firmware in it."""

import os

import pytest

from fuzz_targets.image_builder import firmware_file, option_rom, pe, te, volume
from guest import files, firmware_volume
from guest.image import ImageError, open_image, parse

GUID = "565ec8ba-a484-11e3-802b-b8ac6f7d65e6"
REAL = {suite: files.CACHE / suite / "OVMF_CODE_4M.fd" for suite in ("bullseye", "bookworm")}


@pytest.fixture
def volumes():
    """Skips where volumes cannot be read."""
    pytest.importorskip("uefi_firmware", reason="the extra 'efi' is not installed")


@pytest.fixture
def cache(tmp_path):
    """A firmware cache of two suites, of which both have Common, and the older alone has XenBusDxe."""
    for suite, names in (("bookworm", ["Common"]), ("bullseye", ["Common", "XenBusDxe"])):
        (tmp_path / suite).mkdir()
        parts = [firmware_file(GUID[:-1] + str(number), name, pe()) for number, name in enumerate(names)]
        (tmp_path / suite / "X.fd").write_bytes(volume(*parts))
    return tmp_path


@pytest.mark.parametrize(("data", "form"), [(pe(), "PE32+"), (te(), "TE"), (option_rom(te()), "TE")])
def test_a_file_is_opened_by_its_content(tmp_path, data, form):
    """A PE32+ image, a TE image and an option ROM are told apart by what is in the file; its stem names the image."""
    path = tmp_path / "driver.anything"
    path.write_bytes(data)
    found = open_image(str(path))
    assert (found.name, found.form) == ("driver", form)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    """A scenario may name any path."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):
        open_image(str(tmp_path / "pipe"))


def test_a_module_of_a_volume_is_opened(tmp_path, volumes):
    """`FILE:MODULE` opens the module, by name or GUID, and the module's name is the image's."""
    path = tmp_path / "x.fd"
    path.write_bytes(volume(firmware_file(GUID, "XenBusDxe", pe()), firmware_file(GUID[:-1] + "0", "", te())))
    assert open_image(f"{path}:XenBusDxe").name == "XenBusDxe"
    assert open_image(f"{path}:{GUID}").name == "XenBusDxe"
    assert open_image(f"{path}:{GUID[:-1]}0").name == GUID[:-1] + "0"


def test_a_colon_in_a_path_separates_nothing_that_exists(tmp_path):
    """A file whose name has a colon is opened as it is, and a colon before a folder belongs to the path."""
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "c:d.efi"
    path.write_bytes(pe())
    assert open_image(str(path)).name == "c:d"
    assert files.split("a:b/c") == (files.Path("a:b/c"), "")
    assert files.split("x.fd:A:B") == (files.Path("x.fd:A"), "B")


@pytest.mark.parametrize(
    ("name", "data", "module", "message"),
    [
        ("x.efi", pe(), ":Y", r"x\.efi: an image by itself, so there is no module 'Y' in it"),
        ("x.rom", option_rom(pe()), ":Y", r"x\.rom: an option ROM, so there is no module 'Y' in it"),
        ("x.txt", b"hello", "", r"x\.txt: neither an image \(PE32\+ or TE\) nor an option ROM nor firmware"),
        ("x.efi", pe(magic=0x10B), "", r"/x\.efi: offset 0x98: expected a PE32\+"),
        ("x.rom", option_rom(pe(entry_point=0)), "", r"/x\.rom: offset 0xa8: expected an entry point"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, name, data, module, message):
    """The line names the whole path and what is wrong with it."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        open_image(f"{tmp_path / name}{module}")
    assert str(caught.value).startswith(str(tmp_path))


def test_a_volume_needs_a_module(tmp_path, volumes):
    """Firmware alone is many images; the line says how to name one."""
    path = tmp_path / "x.fd"
    path.write_bytes(volume(firmware_file(GUID, "A", pe(magic=0x10B))))
    with pytest.raises(ImageError, match=rf"firmware with 1 modules; say which one: {path}:NAME"):
        open_image(str(path))
    with pytest.raises(ImageError, match=rf"^{path}:A: offset 0x98: expected a PE32\+"):
        open_image(f"{path}:A")


@pytest.mark.parametrize("spec", ["nowhere.efi", "/nowhere/x.fd:Y", "x" * 5000, "a\0b", ":", "", "../x.fd", "a/b/c.fd"])
def test_what_does_not_exist_is_refused(tmp_path, spec):
    """A path that leads nowhere gives one line, whatever it looks like."""
    with pytest.raises(ImageError, match=r"no such file|cannot be read: Is a directory") as caught:
        open_image(spec, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_large_file_are_refused(tmp_path):
    """What is no file, and what is larger than any firmware, is not read."""
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        open_image(str(tmp_path))
    with (tmp_path / "large.fd").open("wb") as file:
        file.truncate(firmware_volume.SIZE_MAX + 1)
    with pytest.raises(ImageError, match=r"large.fd: larger than 67108864 bytes"):
        open_image(str(tmp_path / "large.fd"))


def test_the_cache_is_looked_into(cache, volumes):
    """A relative path that does not exist here is one of the cache; without a suite, of the one that has the module."""
    assert open_image("bullseye/X.fd:XenBusDxe", cache).name == "XenBusDxe"
    assert open_image("X.fd:XenBusDxe", cache).name == "XenBusDxe"
    assert files.locate("bullseye/X.fd:XenBusDxe", cache) == cache / "bullseye" / "X.fd"
    assert files.locate("X.fd:XenBusDxe", cache) is None
    assert files.locate("nowhere.fd:A", cache) is None
    with pytest.raises(
        ImageError, match=r"X.fd:Common: several suites have it; say bookworm/X.fd:Common or bullseye/X.fd:Common"
    ):
        open_image("X.fd:Common", cache)
    with pytest.raises(ImageError, match=r"bullseye/X.fd: no module 'XenBusDx' \(did you mean 'XenBusDxe'\?\)"):
        open_image("X.fd:XenBusDx", cache)
    with pytest.raises(ImageError, match=r"trixie/X.fd: no such file$"):
        open_image("trixie/X.fd:A", cache)


def test_the_cache_never_hides_a_file(cache, tmp_path, monkeypatch):
    """A file that exists where the user is wins over the cache."""
    folder = tmp_path / "here"
    (folder / "bullseye").mkdir(parents=True)
    (folder / "bullseye" / "X.fd").write_bytes(pe())
    monkeypatch.chdir(folder)
    assert open_image("bullseye/X.fd", cache).name == "X"


def test_an_empty_cache_is_said(tmp_path):
    """Where firmware is asked for and none has been fetched, the line says how to get it."""
    with pytest.raises(
        ImageError, match=r"OVMF.fd: no such file; ./scripts/fetch-firmware gets Debian's OVMF firmware"
    ):
        open_image("OVMF.fd:XenBusDxe", tmp_path / "nothing")
    with pytest.raises(ImageError, match=r"x.efi: no such file$"):
        open_image("x.efi", tmp_path / "nothing")


def real(suite: str) -> bytes:
    """The real firmware of a suite; skips the test where there is none."""
    pytest.importorskip("uefi_firmware", reason="the extra 'efi' is not installed")
    if not REAL[suite].is_file():
        pytest.skip("no firmware in .cache/firmware; ./scripts/fetch-firmware gets it")
    return REAL[suite].read_bytes()


@pytest.mark.parametrize("suite", REAL)
def test_every_x64_module_of_real_firmware_loads(suite):
    """All drivers of the shipped firmware pass the strict parser; what is refused is for another machine."""
    refused = []
    for module in firmware_volume.modules(real(suite)):
        try:
            found = parse(module.image, module.name)
        except ImageError as error:
            refused.append(str(error))
        else:
            assert len(found.mapped(0x1234_5000)) == found.size_of_image
            assert found.entry_point
    assert 8 < len(refused) < 20  # what runs before the machine is in 64-bit mode
    assert all("found IA32 (0x14c)" in line for line in refused), refused


def test_the_shipped_xen_drivers_are_found():
    """The older firmware has the three Xen drivers; what is known of XenBusDxe is what the parser sees."""
    real("bullseye")
    for name in ("XenIoPciDxe", "XenBusDxe", "XenPvBlkDxe"):
        assert open_image(f"bullseye/OVMF_CODE_4M.fd:{name}").name == name
    found = open_image(f"bullseye/OVMF_CODE_4M.fd:{GUID}")
    assert (found.name, found.size_of_image, found.entry_point, found.alignment) == ("XenBusDxe", 0x5F40, 0x30F9, 64)
    assert [section.name for section in found.sections] == [".text", ".data", ".reloc"]
    assert len(found.relocations) == 44
    real("bookworm")
    with pytest.raises(ImageError, match="no module 'XenBusDxe'"):
        open_image("bookworm/OVMF_CODE_4M.fd:XenBusDxe")
