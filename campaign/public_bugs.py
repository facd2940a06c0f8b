"""Public bugs of the kinds that the rules are about, so that whoever reads a finding sees that it is no invention.

`BUGS` tells each in a few words of this project, by the id that seeded faults also use (`Fault.record`), with its places in
public trackers: "tianocore/edk2#9802" is an issue or a pull request, "ipxe/ipxe@6769a7c3c" a commit. `_RULES` says which
of them a rule is like.
"""

from __future__ import annotations

from typing import NamedTuple

_EDK2, _MU, _PATINA = "tianocore/edk2", "microsoft/mu_basecore", "OpenDevicePartnership/patina"
_IPXE, _U_BOOT = "ipxe/ipxe", "u-boot/u-boot"
_SHIPPED = "XenBusDxe as shipped"


class PublicBug(NamedTuple):
    """One kind of bug: what was wrong, and where that is recorded. A place that is no link is said in words."""

    what: str
    places: tuple[str, ...]


BUGS: dict[str, PublicBug] = {
    "ebs-memory-direct": PublicBug(
        "a notification at the exit allocates or frees memory",
        (f"{_EDK2}#9802", f"{_EDK2}#9911", f"{_EDK2}@3ed4e502b5"),
    ),
    "ebs-memory-hidden": PublicBug(
        "a notification at the exit calls a service that allocates inside the core", (f"{_EDK2}#8063",)
    ),
    "ebs-disconnect": PublicBug("drivers are disconnected inside the exit", (f"{_EDK2}#9802", f"{_IPXE}@6769a7c3c")),
    "before-ebs-map-churn": PublicBug(
        "a BEFORE notification moves the memory map on every attempt, so that the loader never gets on",
        (f"{_EDK2}@1b5420e807", "unikraft/unikraft#1105"),
    ),
    "ebs-repeated": PublicBug(
        "exit notifications run again when the loader retries", (f"{_EDK2}#10550", f"{_EDK2}#6481", f"{_PATINA}#189")
    ),
    "ebs-dead-timer": PublicBug(
        "a notification waits for a timer that is already off",
        (f"{_EDK2}#10422", f"{_IPXE}#1136", f"{_IPXE}@5cf5ffea2"),
    ),
    "ebs-unbounded-poll": PublicBug("a notification polls a peer that never answers", (_SHIPPED,)),
    "tpl-notify-calls-callback": PublicBug(
        "a notification at TPL_NOTIFY uses what is limited to TPL_CALLBACK",
        (f"{_EDK2}#7808", f"{_EDK2}#9891", f"{_EDK2}#8525"),
    ),
    "ebs-order": PublicBug(
        "a consumer's notification runs after its provider has shut down", (f"{_EDK2}@7aee391fa3", f"{_MU}#520")
    ),
    "ebs-parent-first": PublicBug(
        "the bus is torn down before its children are done", (f"{_EDK2}@01df510319", f"{_IPXE}@562c74e1e")
    ),
    "ebs-left-live": PublicBug(
        "a ring, a grant or DMA is still alive when the operating system takes over",
        ("NVIDIA/edk2-nvidia#12", f"{_U_BOOT}@0efe8ea57fc", f"{_EDK2}#7204"),
    ),
    "ebs-dma-restarted": PublicBug(
        "a device is used again after it was quiesced", (f"{_IPXE}@236299baa", f"{_IPXE}@85eb961bf")
    ),
    "ebs-over-quiesce": PublicBug(
        "a notification tears down what the operating system still needs", (f"{_EDK2}@6fb8ddd36b",)
    ),
    "ebs-illegal-device-op": PublicBug("a device is quiesced by a wrong operation", (f"{_EDK2}@a82bad9730",)),
    "ebs-dirty-cache": PublicBug("writes that are still cached are lost at the exit", (f"{_EDK2}@12c5ded287",)),
    "ebs-log-after-provider": PublicBug(
        "a notification logs through a provider that has shut down", (f"{_EDK2}#8707",)
    ),
    "service-after-exit": PublicBug(
        "a boot service is called after ExitBootServices has returned", (f"{_U_BOOT}@4e996a838c6",)
    ),
    "loader-no-retry": PublicBug(
        "a loader does not try again when the memory map has moved",
        ("rust-osdev/uefi-rs#523", "rust-osdev/uefi-rs#653"),
    ),
    "event-double-close": PublicBug(
        "an event is closed twice", (f"{_EDK2}#7150", f"{_EDK2}@4f0f2316ed", f"{_EDK2}@e1103f7dca")
    ),
    "event-use-closed": PublicBug(
        "a closed event is signalled, waited on or registered", (f"{_EDK2}@1a4acc1136", f"{_EDK2}#11112")
    ),
    "event-leak-on-error": PublicBug("a failing Start leaves an event behind", (f"{_EDK2}#9683",)),
    "timer-preempts-start": PublicBug(
        "a timer's notification runs in the middle of Start", (f"{_IPXE}@c89a446cf", f"{_EDK2}@15cc67e616")
    ),
    "tpl-not-restored": PublicBug("a function returns at another TPL", (f"{_IPXE}#520", f"{_MU}#230")),
    "recursive-dispatch": PublicBug(
        "notifications nest without bound", (f"{_EDK2}@a24fbd6061", f"{_U_BOOT}@3b985113be6")
    ),
    "start-leak-open": PublicBug(
        "a failing Start leaves protocols open or memory allocated",
        (f"{_EDK2}#12399", f"{_EDK2}#12425", f"{_MU}#1744"),
    ),
    "start-cleanup-order": PublicBug(
        "a failing Start cleans up in the wrong order, or fails at that", (f"{_IPXE}#86", f"{_IPXE}@1295b4acf")
    ),
    "cleanup-wrong-arguments": PublicBug(
        "a clean-up call that seldom runs has wrong arguments", (f"{_EDK2}@2ef0c27cb8", f"{_EDK2}@bf7249df9c")
    ),
    "use-after-free-stop": PublicBug(
        "memory is used in or after Stop although it was freed", (f"{_EDK2}@0b448dd8b2", f"{_EDK2}@5a066b87bd")
    ),
    "stop-wrong-children": PublicBug(
        "Stop handles the wrong children, or only one of them", (f"{_PATINA}#1045", f"{_U_BOOT}@314bed6c854")
    ),
    "stop-reentrant": PublicBug("Stop is entered again from inside", (f"{_EDK2}@e33257215b",)),
    "start-during-stop": PublicBug("Start runs while the controller is being disconnected", (f"{_IPXE}@74d90b33f",)),
    "stop-lies": PublicBug("Stop answers success and goes on managing", (f"{_IPXE}@9ff6d08bf",)),
    "child-open-not-closed": PublicBug(
        "what was opened for a child is not closed before the child goes", (f"{_EDK2}@64ef66ba8b",)
    ),
    "restart-dirty": PublicBug("Stop leaves the device so that the next Start fails", (f"{_EDK2}#7466",)),
    "hot-removal": PublicBug("a device vanishes in the middle of a transaction", (f"{_EDK2}#9685", f"{_PATINA}#1133")),
    "assert-only-check": PublicBug(
        "only an ASSERT looks at a status, and a release build has none", (f"{_EDK2}#7284",)
    ),
    "start-global-dangling": PublicBug(
        "a failed Start leaves a global behind: every later one says that it is already started", (_SHIPPED,)
    ),
    "alloc-unchecked": PublicBug("the result of an allocation is used unchecked", (_SHIPPED,)),
    "reserved-page-leak": PublicBug("each Start and Stop keeps one reserved page", (_SHIPPED,)),
    "ebs-event-create-ignored": PublicBug(
        "Start succeeds although the event for the exit could not be created", (_SHIPPED,)
    ),
}

_RULES: dict[str, tuple[str, ...]] = {
    "memory-services/direct-call": ("ebs-memory-direct", "ebs-disconnect"),
    "memory-services/allocates-inside": ("ebs-memory-hidden", "ebs-disconnect"),
    "memory-services/frees-inside": ("ebs-memory-hidden",),
    "connection-reset/double-reset": ("ebs-repeated", "ebs-parent-first"),
    "connection-reset/missed-reset": ("ebs-left-live", "ebs-event-create-ignored"),
    "connection-reset/premature-reset": ("ebs-parent-first", "ebs-order"),
    "connection-reset/use-after-reset": ("ebs-order", "ebs-dma-restarted", "ebs-log-after-provider"),
    "hand-over/memory-map": ("ebs-memory-direct", "ebs-memory-hidden", "before-ebs-map-churn"),
    "hand-over/store": ("ebs-left-live",),
    "hand-over/grant-table": ("ebs-left-live",),
    "hand-over/grant-left": ("ebs-left-live", "ebs-event-create-ignored"),
    "hand-over/event-channel-left": ("ebs-left-live", "ebs-event-create-ignored"),
    "hand-over/device": ("ebs-left-live", "ebs-dma-restarted", "ebs-over-quiesce", "ebs-illegal-device-op"),
    "hand-over/service-after-exit": ("service-after-exit",),
    "reference-count/leak": ("start-leak-open",),
    "reference-count/underflow": ("ebs-repeated",),
    "event-lifetime/double-close": ("event-double-close",),
    "event-lifetime/use-after-close": ("event-use-closed",),
    "event-lifetime/left-behind": ("event-leak-on-error",),
    "event-lifetime/notified-twice": ("ebs-repeated",),
    "tpl/not-restored": ("tpl-not-restored",),
    "tpl/restore-raises": ("tpl-not-restored",),
    "tpl/raise-lowers": ("tpl-notify-calls-callback",),
    "tpl/too-high": ("tpl-notify-calls-callback",),
    "protocol-usage/left-open": ("start-leak-open",),
    "protocol-usage/cleanup-fails": ("cleanup-wrong-arguments", "start-cleanup-order", "assert-only-check"),
    "protocol-usage/child-left-open": ("child-open-not-closed",),
    "start-stop/failed-start-leaves": ("start-leak-open", "event-leak-on-error", "start-cleanup-order"),
    "start-stop/dangling-start": ("start-global-dangling",),
    "start-stop/stop-leaves": ("reserved-page-leak",),
    "start-stop/restart-differs": ("restart-dirty",),
    "start-stop/stop-wrong-children": ("stop-wrong-children",),
    "start-stop/stop-reentered": ("stop-reentrant",),
    "start-stop/start-during-stop": ("start-during-stop",),
    "start-stop/stop-lies": ("stop-lies",),
    "start-stop/stop-during-exit": ("ebs-disconnect",),
    "memory-ownership/leak": ("reserved-page-leak", "start-leak-open"),
    "memory-ownership/use-after-free": ("use-after-free-stop",),
    "memory-ownership/double-free": ("use-after-free-stop", "start-cleanup-order"),
    "waiting/no-progress": ("ebs-dead-timer",),
    "waiting/unbounded-poll": ("ebs-unbounded-poll", "hot-removal"),
    "waiting/blocks-at-notify": ("tpl-notify-calls-callback",),
    "waiting/nesting": ("recursive-dispatch", "timer-preempts-start"),
    "order-independence/verdict-differs": ("ebs-order", "ebs-parent-first"),
    "order-independence/state-differs": ("ebs-order",),
    "guest-fault/null-pointer": ("alloc-unchecked",),
    "guest-fault/access": ("use-after-free-stop",),
}
"""Rule, "oracle/rule" → the bugs that it is like, the closest first."""


def similar_to(oracle: str, rule: str) -> dict[str, PublicBug]:
    """The public bugs that a rule is like, by id; none for a rule that stands for none."""
    return {name: BUGS[name] for name in _RULES.get(f"{oracle}/{rule}", ())}


def link_of(place: str) -> str:
    """The address of a place on GitHub; "" for one that is said in words."""
    for separator, folder in (("#", "issues"), ("@", "commit")):
        repository, found, number = place.partition(separator)
        if found:
            return f"https://github.com/{repository}/{folder}/{number}"
    return ""
