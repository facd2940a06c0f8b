#!/usr/bin/env python3
"""Fuzzes real .efi drivers with whole scenarios, in a CPU emulator. A libFuzzer program."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from fuzz_targets.engine import main

    main("efi-image")
