"""The grant table: which pages of the guest another domain may map.

The table is memory of the hypervisor, `FRAMES` pages of 512 entries, and the guest writes to it where it has placed the
frames in its physmap. While a frame is in no physmap, writing to its entries has no effect.

An entry (version 1) is eight bytes: flags u16, domain u16, frame u32. The guest sets `PERMIT_ACCESS` and `READONLY`;
the hypervisor sets `READING` and `WRITING` while a peer has the page mapped, and then the guest cannot end the access.
Like Xen, the model remembers what is mapped apart from the entry: a page stays mapped until the peer lets go,
even when the table is gone.

Taking the last frame out of the physmap is the reset of this half of the connection: no entry is in force after it.
Source: Xen, public header grant_table.h.
"""

from __future__ import annotations

import struct

from reference_impl.trace import Kind, Trace

FRAMES = 4
ENTRIES_PER_FRAME = 512
ENTRIES = FRAMES * ENTRIES_PER_FRAME
RESERVED = 8  # entries at the beginning that no driver uses
PAGE_SIZE = 4096

PERMIT_ACCESS, READONLY, READING, WRITING = 1, 1 << 2, 1 << 3, 1 << 4
_IN_USE = READING | WRITING

_ENTRY = struct.Struct("<HHI")
_FLAGS = struct.Struct("<H")
_NO_ENTRY = bytes(8)
_NO_ENTRIES = bytes(PAGE_SIZE)
_CONNECTION, _RESET, _GRANT = int(Kind.CONNECTION), int(Kind.RESET), int(Kind.GRANT)

NOT_MAPPED = "table not in the physmap"


class Mapping:
    """A page that a peer has mapped: of which reference, whose grant it was, and how many times."""

    __slots__ = ("count", "frame", "generation", "owner", "peer", "reference")

    def __init__(self, reference: int, frame: int, owner: str, peer: str, generation: int) -> None:
        self.reference = reference
        self.frame = frame
        self.owner = owner
        self.peer = peer
        self.generation = generation
        self.count = 1


class GrantTable:
    """The guest's grant table.

    generation  how many times the table has come into the physmap
    user        who placed the first frame of this generation, "" while none is placed
    places      for each frame its page number (gfn) in the guest, None where it is not in the physmap
    mapped      what peers have mapped, by reference
    """

    __slots__ = ("_owners", "frames", "generation", "mapped", "places", "trace", "user")

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.frames = [bytearray(PAGE_SIZE) for _ in range(FRAMES)]
        self.places: list[int | None] = [None] * FRAMES
        self.generation = 0
        self.user = ""
        self.mapped: dict[int, Mapping] = {}
        self._owners: dict[int, str] = {}

    # ---- the guest's end ------------------------------------------------------------------------------------------

    def grant(self, agent: str, reference: int, domain: int, frame: int, readonly: bool = False) -> None:
        """Let `domain` map the page `frame` through the entry `reference`. Recorded as GRANT."""
        assert 0 <= reference < ENTRIES
        status = NOT_MAPPED
        if self.places[reference // ENTRIES_PER_FRAME] is not None:
            status = "OK"
            flags = PERMIT_ACCESS | READONLY if readonly else PERMIT_ACCESS
            page, offset = self._entry(reference)
            _ENTRY.pack_into(page, offset, flags, domain, frame)
            self._owners[reference] = agent
        self.trace.add(_GRANT, agent, "grant", (reference, frame, domain), status)

    def end_access(self, agent: str, reference: int) -> bool:
        """Take back the entry `reference`; False, and nothing changes, while a peer has it mapped (GRANT)."""
        assert 0 <= reference < ENTRIES
        page, offset = self._entry(reference)
        ended = reference not in self.mapped
        status = "OK"
        if self.places[reference // ENTRIES_PER_FRAME] is None:
            status = NOT_MAPPED
        elif not ended:
            status = "in use"
        else:
            page[offset : offset + 8] = _NO_ENTRY
            self._owners.pop(reference, None)
        self.trace.add(_GRANT, agent, "end", (reference,), status)
        return ended

    # ---- the hypervisor's part ------------------------------------------------------------------------------------

    def place(self, agent: str, index: int, gfn: int) -> None:
        """A frame comes into the physmap. The first one begins a generation, recorded as CONNECTION."""
        if not self.in_physmap():
            self.generation += 1
            self.user = agent
            self.trace.add(_CONNECTION, agent, "grant-table", (self.generation,))
        self.places[index] = gfn

    def displace(self, agent: str, index: int) -> None:
        """A frame leaves the physmap. The last one ends all grants, recorded as RESET."""
        self.places[index] = None
        if self.in_physmap():
            return
        self.user = ""
        for frame in self.frames:
            frame[:] = _NO_ENTRIES
        self._owners.clear()
        self.trace.add(_RESET, agent, "grant-table", (self.generation,), None, "removed")

    def in_physmap(self) -> bool:
        """Whether any frame is in the guest's physmap."""
        return self.places.count(None) != FRAMES

    # ---- the peer's end -------------------------------------------------------------------------------------------

    def map(self, peer: str, reference: int, domain: int = 0) -> int:
        """Map the page behind `reference` for writing; gives its frame, or -1 where the entry does not permit it.

        A reference that is still mapped is mapped again as it was, whatever the entry says by now.
        Recorded as GRANT.
        """
        mapping = self.mapped.get(reference)
        frame = -1
        if mapping is not None:
            mapping.count += 1
            frame = mapping.frame
        elif 0 <= reference < ENTRIES and self.places[reference // ENTRIES_PER_FRAME] is not None:
            page, offset = self._entry(reference)
            flags, permitted, granted = _ENTRY.unpack_from(page, offset)
            if flags & PERMIT_ACCESS and not flags & READONLY and permitted == domain:
                frame = granted
                _FLAGS.pack_into(page, offset, flags | _IN_USE)
                owner = self._owners.setdefault(reference, "")
                self.mapped[reference] = Mapping(reference, frame, owner, peer, self.generation)
        self.trace.add(_GRANT, "backend", "map", (reference, frame, peer), "OK" if frame >= 0 else "not granted")
        return frame

    def unmap(self, peer: str, reference: int) -> None:
        """Let go of the page behind `reference`, which is mapped. Recorded as GRANT."""
        mapping = self.mapped[reference]
        mapping.count -= 1
        if not mapping.count:
            del self.mapped[reference]
            page, offset = self._entry(reference)
            _FLAGS.pack_into(page, offset, _FLAGS.unpack_from(page, offset)[0] & ~_IN_USE)
        self.trace.add(_GRANT, "backend", "unmap", (reference, mapping.frame, peer), "OK")

    def _entry(self, reference: int) -> tuple[bytearray, int]:
        """The page and the offset of an entry."""
        return self.frames[reference // ENTRIES_PER_FRAME], reference % ENTRIES_PER_FRAME * 8
