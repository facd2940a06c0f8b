#!/usr/bin/env python3
"""Fuzzes whole scenarios: start, stop, failure and restart of drivers, and ExitBootServices. A libFuzzer program."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from fuzz_targets.engine import main

    main("lifecycle")
