"""Whole cores with positions sharded over devices, whatever they do along time outside ops, equal one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxseq.cores import CORES

SCRIPT = Path(__file__).with_name("sequence_cores_on_four_devices.py")


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("rglru", "conv"), marks=pytest.mark.full),
        pytest.param(("hybrid", *(name for name in CORES if name not in ("rglru", "conv"))), marks=pytest.mark.slow),
    ],
    ids=["a few", "all others"],
)
def test_outputs_carries_and_gradients_of_cores_equal_those_of_one_device(names):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, str(SCRIPT), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert {name: error for name, error in differences.items() if not error < 1e-10} == {}
    assert len(differences) == 2 * len(names)
