"""The fuzz targets: what `--target` names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fuzz_targets.canary import planted
from fuzz_targets.generator import PROFILES, Profile
from reference_impl.scenario import Scenario, designs_of

if TYPE_CHECKING:
    from fuzz_targets.harness import Verdict
    from oracles.finding import Finding
    from reference_impl.trace import Trace


@dataclass(frozen=True, slots=True)
class Target:
    """One way to fuzz.

    name         as in `--target`; `fuzz_targets/<name>.py` is its program, with "_" for "-"
    description  a sentence for people
    world        the world that its scenarios run in
    profile      what its generated scenarios look like
    designs      which teardown designs it can be run with; only "" in a world that has none
    arguments    options of libFuzzer that it has by itself
    timeout_s    the longest that one execution may take, on the wall, where nobody says otherwise
    mutates      whether inputs are mutated; without it every input is generated anew
    known        (design, beginning of a signature): findings that are expected, so that its program goes on after them
    shuffles     whether each scenario also runs in other orders of notifications, to compare what becomes of it
    planted      an oracle of its own, over scenario and trace
    """

    name: str
    description: str
    world: str
    profile: Profile
    designs: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    timeout_s: int = 10
    mutates: bool = True
    known: tuple[tuple[str, str], ...] = ()
    shuffles: bool = False
    planted: Callable[[Scenario, Trace], list[Finding]] | None = None

    @property
    def default_design(self) -> str:
        """The design that its program fuzzes where none is named: the last, which is the newest proposal."""
        return self.designs[-1]

    def run(self, scenario: Scenario) -> Verdict:
        """Run and judge one scenario, with the target's own oracle besides the others."""
        from fuzz_targets.harness import Verdict, run_and_judge, run_in_orders  # late: it needs every world

        verdict = run_in_orders(scenario) if self.shuffles else run_and_judge(scenario)
        if self.planted is None:
            return verdict
        return Verdict(verdict.trace, verdict.findings + self.planted(scenario, verdict.trace))

    def prepare(self, design: str, images: tuple[str, ...] = ()) -> None:
        """Start the images of the efi-image world once, so that what is missing is said before anything begins.

        Raises ImageError where one cannot be had or started, and ExtraMissing.
        """
        if self.world == "efi-image":
            self.run(Scenario(self.world, design, images))

    def is_known(self, design: str, signature: str) -> bool:
        """Whether a finding is expected of this design."""
        return any(design == known and signature.startswith(start) for known, start in self.known)


_DESIGNS = designs_of("platform")

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "lifecycle",
            "whole scenarios: drivers start, stop, fail and restart, devices come and go, then ExitBootServices",
            "platform",
            PROFILES["lifecycle"],
            _DESIGNS,
        ),
        Target(
            "exit_boot_services",
            "many started devices, deep shuffles of the notification order, failing exits and retries",
            "platform",
            PROFILES["exit_boot_services"],
            _DESIGNS,
            shuffles=True,
        ),
        Target(
            "boot_services",
            "raw service calls with any arguments against the firmware core alone",
            "core",
            PROFILES["boot_services"],
            ("",),
        ),
        Target(
            "xenstore_ring",
            "the xenstore client's ring against a peer that may lie",
            "ring",
            PROFILES["xenstore_ring"],
            ("",),
        ),
        Target(
            "efi-image",
            "whole scenarios against real .efi drivers in a CPU emulator: XenBusDxe and XenPvBlkDxe, or your own",
            "efi-image",
            PROFILES["efi_image"],
            designs_of("efi-image"),
            timeout_s=120,  # the processes of runs have limits of their own, in processor time (`guest.snapshots`)
        ),
        Target(
            "smoke",
            "a short run of generated scenarios, the same on every machine; finds nothing but what is known",
            "platform",
            PROFILES["lifecycle"],
            _DESIGNS,
            arguments=("-seed=1", "-runs=2000", "-use_cmp=0", "-entropic=0"),
            mutates=False,
            known=tuple(
                ("disconnect", known)
                for known in (
                    "memory-services/",
                    "hand-over/",
                    "start-stop/stop-during-exit/",
                    "tpl/too-high/XenBusDxe/WaitForEvent",
                )
            ),
        ),
        Target(
            "canary",
            "must fail: finds a planted rule that any working fuzzer breaks within seconds",
            "platform",
            PROFILES["lifecycle"],
            _DESIGNS,
            planted=planted,
        ),
    )
}
