"""Placements on 8 host devices, in one process of their own."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("on_eight_devices.py")


def test_states_batches_and_losses_on_eight_devices_are_those_of_one() -> None:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[:2] == ["initial values", "batches"], done.stdout
