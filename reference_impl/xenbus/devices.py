"""In what the PV devices differ. edk2 has a driver for block devices alone; the other two are models of this project."""

from __future__ import annotations

from typing import NamedTuple

from reference_impl.uefi import guids


class Device(NamedTuple):
    """One kind of PV device, as its driver sees it.

    agent           the driver's name
    type            its folder in xenstore
    protocol        GUID of the interface that the driver publishes
    required_nodes  nodes of the device without which it cannot be started
    ring_nodes      one node for each ring page that is granted to the peer
    written_nodes   what else the front end tells the peer: (node, value)
    peer_nodes      what the front end reads from the peer once it is connected
    """

    agent: str
    type: str
    protocol: str
    required_nodes: tuple[str, ...]
    ring_nodes: tuple[str, ...]
    written_nodes: tuple[tuple[str, str], ...]
    peer_nodes: tuple[str, ...]


BLOCK = Device(
    agent="XenPvBlkDxe",
    type="vbd",
    protocol=guids.BLOCK_IO_PROTOCOL,
    required_nodes=("device-type",),
    ring_nodes=("ring-ref",),
    written_nodes=(("protocol", "x86_64-abi"),),
    peer_nodes=("info", "sectors", "sector-size", "feature-barrier", "feature-flush-cache"),
)

NETWORK = Device(
    agent="XenPvNetDxe",
    type="vif",
    protocol=guids.SIMPLE_NETWORK_PROTOCOL,
    required_nodes=("mac",),
    ring_nodes=("tx-ring-ref", "rx-ring-ref"),
    written_nodes=(("request-rx-copy", "1"),),
    peer_nodes=("feature-rx-copy",),
)

CONSOLE = Device(
    agent="XenPvConsoleDxe",
    type="console",
    protocol=guids.SERIAL_IO_PROTOCOL,
    required_nodes=(),
    ring_nodes=("ring-ref",),
    written_nodes=(),
    peer_nodes=(),
)

DEVICES: dict[str, Device] = {"block": BLOCK, "network": NETWORK, "console": CONSOLE}
"""The name that scenarios use → the device."""
