"""Seeded faults: deliberately wrong drivers, buses and cores, by name."""

from __future__ import annotations

FAULTS: dict[str, str] = {}
"""Name → a sentence that says what is wrong."""
