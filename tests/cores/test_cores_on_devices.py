"""Cores on several devices compute what they compute on one, and exchange no activations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxseq.cores import CORES, GRU
from jaxseq.testing import check_core_on_devices

SCRIPT = Path(__file__).with_name("on_devices.py")
QUICK = ("lstm", "mingru")


def run_on(devices: int, *words: str) -> None:
    """Runs the script in a process with that many host devices."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_devices_compute_what_one_does_and_exchange_weight_gradients_alone() -> None:
    run_on(2, "laws", *QUICK, "collectives", "lstm")


@pytest.mark.full
def test_every_core_computes_on_two_devices_what_it_does_on_one() -> None:
    run_on(2, "laws", *(name for name in CORES if name not in QUICK), "strangers")


@pytest.mark.full
def test_arrays_of_an_explicit_mesh_need_no_ambient_mesh_for_gradients_of_parameters() -> None:
    run_on(2, "explicit", "lstm", "gru", "attention")


@pytest.mark.full
def test_no_activations_are_exchanged_and_nothing_in_a_loop_over_time() -> None:
    names = "lstm", "gru", "slstm", "layer_norm_lstm", "rglru", "gla", "attention", "mamba2", "delta"
    run_on(8, "collectives", *names)


def test_too_few_devices_are_refused_with_the_flag_that_makes_them() -> None:
    with pytest.raises(ValueError, match=r"needs 2 devices, but JAX has 1\. .*device_count=2"):
        check_core_on_devices(GRU)
    with pytest.raises(ValueError, match=r"devices=3 must be 2 or more and divide the batch of 4 rows"):
        check_core_on_devices(GRU, devices=3)
    with pytest.raises(TypeError, match=r"check_core_on_devices needs a class .* not an instance of GRU"):
        check_core_on_devices(GRU(8))
