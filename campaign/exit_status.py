"""Exit statuses of every `ebsfuzz` command. Scripts and CI rely on them."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended."""

    NOTHING_FOUND = 0
    """The command did what it was asked for, and no rule is broken. Notes and known findings do not count."""

    FINDINGS = 1
    """At least one rule is broken that no baseline lists."""

    USAGE = 2
    """Wrong usage or unreadable input: the user can mend it. One line on standard error says what."""

    FAILED = 3
    """ebsfuzz itself failed: no verdict. Also a fuzzer that is blind, and an engine that this machine does not have."""


class UsageProblem(Exception):  # noqa: N818 -- it is the user's, not an error of the program
    """Something that the user gave cannot be used. The message is one line and says what to mend."""


class CampaignFailure(Exception):  # noqa: N818 -- reads as what it is
    """ebsfuzz itself failed. The message says what broke and where the evidence lies."""
