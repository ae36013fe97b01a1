"""Runs of several processes on this machine: the same results, checkpoints, faults."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxseq.training import EXIT_INTERRUPTED, Checkpoints, read_json_lines

SCRIPT = Path(__file__).with_name("several_processes.py")
STEPS = 10
TEXT_FILES = ["checkpoints", "checksums.json", "config.json", "environment.json", "metrics.jsonl", "parameters.json"]


class Starter:
    """Starts the script on processes and devices, with one cache of compiled programs."""

    def __init__(self, cache):
        self.environment = os.environ | {
            "JAXSEQ_COMPILATION_CACHE": str(cache),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
        }

    def popen(self, folder, processes, devices, *, steps=STEPS, restarts=0, mesh="data=2,fsdp=-1", **variables):
        command = [sys.executable, "-m", "jaxseq.launch", f"--processes={processes}"]
        command += [f"--devices-per-process={devices}", f"--max-restarts={restarts}"]
        return subprocess.Popen(
            [*command, str(SCRIPT), str(folder), mesh, str(steps)],
            env=self.environment | {name: str(value) for name, value in variables.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder, processes, devices, *, code=0, **options):
        """Output and errors of a run that ends with the exit code."""
        process = self.popen(folder, processes, devices, **options)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, out + err
        return out, err


def digests(err):
    return re.findall(r"^\[(\d+)\] digest (\w+)$", err, re.MULTILINE)


def digest(err, processes=2):
    """The digest that all processes have printed."""
    found = digests(err)
    assert sorted(rank for rank, _ in found) == [str(rank) for rank in range(processes)], err
    assert len({value for _, value in found}) == 1
    return found[0][1]


def parameters(folder):
    with np.load(f"{folder}.{STEPS}.npz") as arrays:
        return [arrays[name] for name in arrays.files]


def distance(folder, other):
    pairs = zip(parameters(folder), parameters(other), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def shorten(source, folder, step):
    """A copy of a run folder whose newest checkpoint is that of a step."""
    shutil.copytree(source, folder)
    for saved in (folder / "checkpoints").iterdir():
        if int(saved.name) > step:
            shutil.rmtree(saved)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return Starter(tmp_path_factory.mktemp("xla"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, start):
    """A run of 2 processes x 2 devices that nobody disturbs: its folder, digest and output."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    out, err = start(folder, 2, 2)
    return folder, digest(err), out


def test_all_processes_end_with_one_state_and_the_first_alone_writes(whole):
    folder, _, out = whole
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == TEXT_FILES
    assert out and all(line.startswith("[0] ") for line in out.splitlines())
    rows = read_json_lines(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(2, STEPS + 1, 2))
    assert rows[-1]["tokens"] == STEPS * 8 * 4
    newest = folder / "checkpoints" / f"{STEPS:08d}"
    names = sorted(p.name for p in newest.iterdir())
    assert names == ["arrays", "manifest.0.json", "manifest.1.json", "manifest.json"]
    assert json.loads((folder / "environment.json").read_text())["process_count"] == 2


@pytest.mark.full
def test_killed_and_started_again_by_the_launcher_it_ends_bit_for_bit_the_same(tmp_path, start, whole):
    _, err = start(tmp_path / "run", 2, 2, restarts=2, SEND="1,7,9")
    assert "process 1 died by SIGKILL" in err and "restart 1 of 2" in err
    assert digest(err) == whole[1]


@pytest.mark.full
def test_all_processes_keep_what_is_the_best_for_the_first(tmp_path, start, whole):
    _, err = start(tmp_path / "run", 2, 2, BEST=1)
    store = Checkpoints(tmp_path / "run" / "checkpoints")
    assert digest(err) == whole[1] and store.best_step() == 6 and 3 not in store.steps()
    manifest = json.loads((tmp_path / "run" / "checkpoints" / f"{STEPS:08d}" / "manifest.json").read_text())
    assert manifest["body"]["meta"]["best"]["value"] == 1.0


@pytest.mark.full
def test_a_checkpoint_of_two_processes_goes_on_in_one(tmp_path, start, whole):
    folder = tmp_path / "run"
    shorten(whole[0], folder, 6)
    out, err = start(folder, 1, 4)
    assert "resuming from step 6" in out and digest(err, 1)
    assert distance(whole[0], folder) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "mesh"), [(1, 1, "data=1"), (1, 8, "data=-1"), (2, 1, "fsdp=-1")])
def test_a_checkpoint_goes_on_on_every_topology(tmp_path, start, whole, processes, devices, mesh):
    folder = tmp_path / "run"
    shorten(whole[0], folder, 6)
    out, _ = start(folder, processes, devices, mesh=mesh)
    assert "resuming from step 6" in out
    assert distance(whole[0], folder) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (4, 1)])
def test_the_number_of_processes_changes_nothing(tmp_path, start, whole, processes, devices):
    _, err = start(tmp_path / "run", processes, devices)
    print("bitwise:", digest(err, processes) == whole[1])
    assert distance(whole[0], tmp_path / "run") < 1e-6


def ranks(launcher):
    """The process ids of the launcher's children."""
    text = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_bit_for_bit_the_same(tmp_path, start, whole):
    killed = []
    for index in range(10):
        chance = random.Random(index)
        delay, rank = chance.uniform(0.3, 5.0), chance.randrange(2)
        process = start.popen(tmp_path / str(index), 2, 2, restarts=2, SLOW=0.2)
        time.sleep(delay)
        if len(pids := ranks(process)) == 2:
            os.kill(pids[rank], signal.SIGKILL)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, (index, delay, out, err)
        killed.append("restart 1 of 2" in err)
        assert digest(err) == whole[1], (index, delay)
    assert sum(killed) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path, start, whole, number):
    folder = tmp_path / "run"
    out, err = start(folder, 2, 2, code=EXIT_INTERRUPTED, SLOW=0.3, SEND=f"1,3,{int(number)}")
    stopped = int(re.search(r"stopped at step (\d+) of", out).group(1))
    assert Checkpoints(folder / "checkpoints").steps()[-1] == stopped < STEPS
    assert "Traceback" not in err
    _, err = start(folder, 2, 2)
    assert digest(err) == whole[1]


@pytest.mark.slow
def test_a_full_disk_of_one_process_loses_checkpoints_and_no_state(tmp_path, start, whole):
    # Process 0 waits for the part of process 1 in Orbax's own barrier, up to checkpoints.ORBAX_TIMEOUT_S (5 minutes).
    _, err = start(tmp_path / "run", 2, 2, FULL="1,3,5", SLOW=0.1)
    for rank in (0, 1):
        assert re.search(rf"^\[{rank}\].*CheckpointWarning: the checkpoint of step 4 was not written", err, re.M), err
    assert digest(err) == whole[1]
    # Orbax's barriers of the next checkpoint may fail, too (seen with 0.12.8): then the one of step 2 is kept.
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names[1:] == ["00000008", "00000010"] and names[0] in ("00000002", "00000006")


@pytest.mark.slow
def test_a_stopped_process_is_found_and_the_run_goes_on(tmp_path, start, whole):
    begin = time.monotonic()
    _, err = start(tmp_path / "run", 2, 2, restarts=1, SEND=f"1,7,{int(signal.SIGSTOP)}")
    assert "restart 1 of 1" in err and digest(err) == whole[1]
    print("found and finished in", time.monotonic() - begin, "s")


@pytest.mark.slow
def test_the_watchdog_finds_a_step_that_hangs(tmp_path, start, whole):
    _, err = start(tmp_path / "run", 2, 2, restarts=1, SEND=f"1,7,{int(signal.SIGSTOP)}", HANG=3)
    assert "watchdog: a step has taken more than" in err and "process 0 ended with exit code 76" in err
    assert digest(err) == whole[1]


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_all_with_it(tmp_path, start):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "other").touch()
    _, err = start(folder, 2, 2, code=1)
    for rank in (0, 1):
        assert re.search(rf"^\[{rank}\].*RunFolderError: .* is not a run folder", err, re.M), err
