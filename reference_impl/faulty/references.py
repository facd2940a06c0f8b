"""Faults of the reference count: devices that take and give back what they should not.

All of them are faults of the design `reference-count`, whatever the scenario's is.
"""

from __future__ import annotations

from reference_impl.faulty.fault import IN_SOME_ORDERS, NEVER_RESET, RESET_TOO_EARLY, Fault, changed
from reference_impl.uefi.status import EfiError
from reference_impl.xenbus.designs import reference_count
from reference_impl.xenbus.designs.base import Design, DeviceTeardown

_RIGHT = reference_count.DESIGN
_DEVICE = reference_count.Device


def _kept_by_failed_start(design: Design) -> Design:
    def started(self: DeviceTeardown) -> None:
        try:
            _DEVICE.started(self)  # type: ignore[arg-type]
        except EfiError:
            self.device.io.teardown.add_reference(self.device.io.node)
            raise

    return _RIGHT._replace(device=changed(_DEVICE, started=started))


def _kept_by_stop(design: Design) -> Design:
    def stopping(self: reference_count.Device) -> None:
        self._event.close()

    return _RIGHT._replace(device=changed(_DEVICE, stopping=stopping))


def _given_back_twice(design: Design) -> Design:
    def stopping(self: reference_count.Device) -> None:
        _DEVICE.stopping(self)
        self.device.io.teardown.remove_reference(self.device.io.node, False)

    return _RIGHT._replace(device=changed(_DEVICE, stopping=stopping))


def _taken_twice(design: Design) -> Design:
    def started(self: reference_count.Device) -> None:
        _DEVICE.started(self)
        if self.device.kind.type == "vif":
            self.device.io.teardown.add_reference(self.device.io.node)

    return _RIGHT._replace(device=changed(_DEVICE, started=started))


def _handed_off_as_false(design: Design) -> Design:
    def _notify(self: reference_count.Device, event: int, context: int) -> None:
        device = self.device.services.core.object_at(context, self.device.services.agent)
        device.forget()
        device.io.teardown.remove_reference(device.io.node, False)

    return _RIGHT._replace(device=changed(_DEVICE, _notify=_notify))


FAULTS: dict[str, Fault] = {
    "reference-kept-by-failed-start": Fault(
        "a device's Start that fails at its last step leaves a reference behind",
        "start-leak-open",
        ("reference-count/leak", "reference-count/unbalanced", *NEVER_RESET, *IN_SOME_ORDERS),
        design=_kept_by_failed_start,
    ),
    "reference-kept-by-stop": Fault(
        "a device's Stop does not give its reference back",
        "",
        ("reference-count/leak", "reference-count/unbalanced", *NEVER_RESET, *IN_SOME_ORDERS),
        design=_kept_by_stop,
    ),
    "reference-given-back-twice": Fault(
        "a device's Stop gives its reference back twice",
        "",
        (
            *("reference-count/underflow", "reference-count/unbalanced", "reference-count/leak"),
            *(*RESET_TOO_EARLY, "connection-reset/missed-reset", "hand-over/grant-table"),
            *IN_SOME_ORDERS,
        ),
        design=_given_back_twice,
    ),
    "reference-taken-twice": Fault(
        "a network device's Start takes two references",
        "",
        ("reference-count/unbalanced", "reference-count/leak", *NEVER_RESET, *IN_SOME_ORDERS),
        design=_taken_twice,
    ),
    "handed-off-as-false": Fault(
        "a device's notification calls RemoveReference(FALSE), as its Stop does",
        "",
        ("connection-reset/missed-reset", "hand-over/store", "hand-over/grant-table", *IN_SOME_ORDERS),
        design=_handed_off_as_false,
    ),
}
