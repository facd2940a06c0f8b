"""The teardown designs: how bus and devices let go of the machine at ExitBootServices.

Each design is one file with two short classes: the bus's side and the device's side. Both have the same three moments:
`started` (last thing of a Start that succeeds), `stopping` (first thing of Stop), and what is done at the exit.
"""

from __future__ import annotations

from reference_impl.xenbus.designs import disconnect, exit_callback, reference_count
from reference_impl.xenbus.designs.base import Design

DESIGNS: dict[str, Design] = {
    "disconnect": disconnect.DESIGN,
    "exit-callback": exit_callback.DESIGN,
    "reference-count": reference_count.DESIGN,
}
