"""Processes that are killed or told to stop, and started again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_training import Config, digest, initial_params, train

from jaxseq.training import EXIT_INTERRUPTED, Checkpoints, read_json_lines, read_run

SCRIPT = Path(__file__).parent / "resumed_training.py"
STEPS = Config().train.steps


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One compilation cache for all processes, so that a start takes as long as its imports."""
    cache = tmp_path_factory.mktemp("xla")
    return os.environ | {"JAXSEQ_COMPILATION_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, environment):
    """The end of a run that nobody disturbs, in a process of its own."""
    end, code = start(tmp_path_factory.mktemp("whole"), environment)
    assert code == 0
    return end


def start(folder, environment, stop=None, number=signal.SIGKILL, delay=0.0, options=()):
    """Run the script; it gets a signal `delay` seconds after its metrics have reached the step `stop`."""
    command = [sys.executable, "-W", "error", str(SCRIPT), str(folder), *options]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        if stop is not None:
            while process.poll() is None and not reached(folder, stop):
                time.sleep(0.002)
            time.sleep(delay)
            process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    end = out.split()[-1] if "end " in out else None
    return end, process.returncode


def reached(folder, step):
    if step == 0:
        return (folder / "config.json").exists()
    return any(row["step"] >= step for row in read_json_lines(folder / "metrics.jsonl"))


@pytest.mark.full
def test_the_state_in_this_process_is_the_one_in_another(tmp_path, expected):
    assert digest(train(tmp_path, Config())) == expected


@pytest.mark.full
def test_killed_at_three_points_it_ends_bit_for_bit_the_same(tmp_path, environment, expected):
    for point in (3, 9, 15):
        assert start(tmp_path, environment, stop=point, delay=point / 500) == (None, -signal.SIGKILL)
    assert start(tmp_path, environment) == (expected, 0)
    steps = [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


@pytest.mark.full
def test_killed_at_three_points_it_keeps_the_best_of_a_run_that_nobody_disturbs(tmp_path, environment, expected):
    options, found = ["best"], []
    for point in (4, 9, 14):
        ended = start(tmp_path / "killed", environment, stop=point, delay=point / 500, options=options)
        assert ended == (None, -signal.SIGKILL)
    for name in ("killed", "whole"):
        assert start(tmp_path / name, environment, options=options) == (expected, 0)
        restored = read_run(tmp_path / name).restore_parameters(initial_params(), step="best")
        found.append((digest(restored.state), restored.meta["best"]))
    assert found[0] == found[1]


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_bit_for_bit_the_same(tmp_path, environment, expected):
    killed = []
    for index in range(20):
        folder = tmp_path / str(index)
        delay = random.Random(index).uniform(0, 1.2)
        _, code = start(folder, environment, stop=0, delay=delay)
        killed.append(code == -signal.SIGKILL)
        saved = Checkpoints(folder / "checkpoints").steps()
        assert start(folder, environment) == (expected, 0), (index, delay, saved)
    assert sum(killed) >= 10


@pytest.mark.full
def test_terminated_it_saves_once_and_exits_with_the_documented_code(tmp_path, environment, expected):
    end, code = start(tmp_path, environment, stop=6, number=signal.SIGTERM)
    assert (end, code) == (None, EXIT_INTERRUPTED)
    steps = Checkpoints(tmp_path / "checkpoints").steps()
    assert steps[-1] >= 6 and len(steps) == 2
    assert sum(step % 5 != 0 for step in steps) <= 1
    assert start(tmp_path, environment) == (expected, 0)
