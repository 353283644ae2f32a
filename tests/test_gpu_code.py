"""The check of machine code for GPUs finds what it is there to find; CI runs it on all kernels."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("planted_faults.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_planted_faults_are_found_and_a_sound_kernel_passes() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(FAULTS)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["sound"] == []
    for name, words in (
        ("spilling", "of spilled registers; none is allowed"),
        ("adding", "atomic instructions"),
        ("narrow", "no read of 16 bytes"),
        ("tight", "registers, 3 are budgeted"),
        ("unknown", "no budget; run with --renew"),
    ):
        (fault,) = said[name]
        assert words in fault
