"""Experiments with ``--mesh`` on 2 host devices, in one process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("on_two_devices.py")


@pytest.mark.full
@pytest.mark.slow
def test_runs_on_a_mesh_of_two_devices_give_the_losses_and_texts_of_one(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed (extra `images`)")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra `images`)")
    root = str(SCRIPT.parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("checked: ")]
    assert len(found) == 4, done.stdout
