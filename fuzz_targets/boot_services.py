#!/usr/bin/env python3
"""Fuzzes raw service calls with any arguments against the firmware core alone. A libFuzzer program."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from fuzz_targets.engine import main

    main("boot_services")
