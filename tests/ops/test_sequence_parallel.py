"""Ops whose positions are sharded over 4 host devices equal those of one device; what they exchange is as stated."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("sequence_on_four_devices.py")
FULL = [pytest.param("full", marks=pytest.mark.full), pytest.param("slow", marks=pytest.mark.slow)]
ALL = ["quick", *FULL]


@functools.cache
def report(which: str) -> dict[str, Any]:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, str(SCRIPT), which]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("which", ALL)
def test_values_states_and_gradients_equal_those_of_one_device(which):
    differences = report(which)["float64"]
    assert len(differences) >= 3
    assert {name: error for name, error in differences.items() if not error < 1e-10} == {}


@pytest.mark.slow
def test_float32_results_equal_those_of_one_device_to_rounding():
    assert {name: error for name, error in report("slow")["float32"].items() if not error < 1e-5} == {}


@pytest.mark.full
def test_bfloat16_results_equal_those_of_one_device_to_rounding():
    assert {name: error for name, error in report("full")["bfloat16"].items() if not error < 2**-7} == {}


@pytest.mark.parametrize("which", FULL)
def test_no_output_depends_on_later_inputs(which):
    assert all(report(which)["causality"].values())


def test_only_divisible_calls_of_several_positions_outside_shard_map_are_split():
    loop = {"linear_recurrence": ["loop"]}
    expected = {"16": {"linear_recurrence": ["sequence"]}, "15": loop, "1": loop, "inside": loop}
    assert report("quick")["implementations"] == expected


def test_zigzag_gives_every_rank_the_same_number_of_causal_pairs_and_skips_all_others():
    for counts, ranks in zip(report("quick")["live"], (2, 4, 8), strict=True):
        chunks = 2 * ranks
        assert counts == [chunks + 1] * ranks
        assert sum(counts) == chunks * (chunks + 1) // 2


@pytest.mark.parametrize("which", FULL)
def test_no_activations_are_gathered(which):
    for part in ("forward", "gradient"):
        for lengths in report(which)[part].values():
            assert all(set(found) <= {"collective-permute", "all-reduce"} for found in lengths)


@pytest.mark.parametrize("which", FULL)
def test_traffic_of_recurrences_and_convolutions_does_not_depend_on_the_length(which):
    for part in ("forward", "gradient"):
        found = report(which)[part]
        short_and_long = [lengths for name, lengths in found.items() if not name.startswith("attention")]
        assert all(short == long for short, long in short_and_long)


@pytest.mark.full
def test_traffic_of_linear_recurrence_and_convolution_is_that_of_the_formula():
    rows, features, number, ranks = 2, 4, 4, 4
    permutations = 1 + math.ceil(math.log2(ranks - 1))
    state, halo = rows * features * number, rows * 3 * features * number
    forward = report("full")["forward"]
    # Without an incoming product of decays, the last permutation of it is not needed.
    assert forward["linear_recurrence"][0] == {
        "collective-permute": permutations * 2 * state - state,
        "all-reduce": state,
    }
    counts = 4 * rows  # the number of inputs in a halo, which only padding changes
    assert forward["causal_convolution"][0]["all-reduce"] == halo
    assert forward["causal_convolution"][0]["collective-permute"] <= permutations * (halo + counts)


@pytest.mark.full
def test_a_ring_exchanges_its_own_keys_and_values_with_each_other_rank():
    short, long = report("full")["gradient"]["attention causal"]
    assert short.keys() == {"collective-permute"} and long["collective-permute"] == 2 * short["collective-permute"]
