"""What an oracle says: one broken promise, and the rule that it breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Rule(NamedTuple):
    """One rule of a family: where it stands ("UEFI 2.10 §7.1.1"), and what it asks for, as one sentence."""

    source: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule in one trace.

    oracle    family in kebab case: "memory-services"
    rule      shorter name inside the family: "direct-call"
    source    where the rule stands: "UEFI 2.10 §7.1.1"
    agent     whose promise broke: "XenBusDxe"
    subject   what it is about, stable from run to run: a service name, a device type, "ring"; part of the signature
    step      index of the record in the trace
    expected  what the rule asks for, a sentence
    seen      what happened instead, a sentence
    note      a remark that does not change the exit status
    """

    oracle: str
    rule: str
    source: str
    agent: str
    subject: str
    step: int
    expected: str
    seen: str
    note: bool = False

    @property
    def signature(self) -> str:
        """The key under which equal findings count once: no step, no address, no number that changes by run."""
        return f"{self.oracle}/{self.rule}/{self.agent}/{self.subject}"
