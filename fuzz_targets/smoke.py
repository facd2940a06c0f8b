#!/usr/bin/env python3
"""Runs the same generated scenarios on every machine; finds nothing but what is known. A libFuzzer program."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from fuzz_targets.engine import main

    main("smoke")
