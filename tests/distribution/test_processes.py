"""``initialize_processes``: the launcher's variables, detection, one process, and errors."""

import os
import socket
import subprocess
import sys
import time

import pytest

from jaxseq import distribution
from jaxseq.launch import free_port

START = """
import sys
import jaxseq
from jaxseq.distribution import initialize_processes
initialize_processes(init_timeout_s=20)
initialize_processes()
import jax
print("out", jax.process_index(), jax.process_count(), flush=True)
print("err", jax.process_index(), jax.process_count(), jax.device_count(), file=sys.stderr, flush=True)
"""
NAMES = ("JAXSEQ_", "SLURM_", "OMPI_", "JAX_COORDINATOR")


def start(code=START, **variables):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(NAMES)}
    environment = clean | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | variables
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def both(*variables, code=START):
    """Standard output, error and exit code of processes that run at once."""
    processes = [start(code, **each) for each in variables]
    done = [process.communicate(timeout=100) for process in processes]
    return [(out, err, process.returncode) for (out, err), process in zip(done, processes, strict=True)]


def launched(port, rank):
    return {"JAXSEQ_COORDINATOR": f"127.0.0.1:{port}", "JAXSEQ_PROCESSES": "2", "JAXSEQ_PROCESS": str(rank)}


def slurm(port, rank):
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "JAX_COORDINATOR_PORT": str(port),
    }


def open_mpi(port, rank):
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:1234",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.parametrize(
    "variables",
    [launched, pytest.param(slurm, marks=pytest.mark.full), pytest.param(open_mpi, marks=pytest.mark.full)],
)
def test_two_processes_find_each_other_and_the_first_alone_prints(variables):
    port = free_port()
    for rank, (out, err, code) in enumerate(both(variables(port, 0), variables(port, 1))):
        assert code == 0, err
        assert f"err {rank} 2 2" in err
        assert out == ("out 0 2\n" if rank == 0 else "")


@pytest.mark.full
@pytest.mark.parametrize(
    "variables", [{}, launched(1, 0) | {"JAXSEQ_PROCESSES": "1"}, slurm(1, 0) | {"SLURM_NTASKS": "1"}]
)
def test_one_process_is_left_alone(variables):
    ((out, err, code),) = both(variables)
    assert (out, code) == ("out 0 1\n", 0), err


@pytest.mark.full
def test_it_comes_before_the_first_computation():
    code = "import jax; jax.devices()\n" + START
    done = both({**launched(free_port(), 0)}, code=code)[0]
    assert done[2] == 1
    assert "RuntimeError: initialize_processes() must be called before the first JAX computation" in done[1]


@pytest.mark.full
def test_a_coordinator_that_cannot_be_reached_is_named():
    begin = time.monotonic()
    port = free_port()
    _, err, code = both(launched(port, 1), code=START.replace("=20", "=1"))[0]
    assert code == 1 and time.monotonic() - begin < 30
    assert f"RuntimeError: process 1 could not reach the coordinator 127.0.0.1:{port} within 1 s" in err


@pytest.mark.full
def test_a_process_that_never_comes_is_reported_by_the_first():
    port = free_port()
    _, err, code = both(launched(port, 0), code=START.replace("=20", "=2"))[0]
    assert code != 0
    assert f"process 0 of 2 is still waiting for the others at 127.0.0.1:{port} (limit 2 s)" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAXSEQ_PROCESS": ""}, "JAXSEQ_COORDINATOR, JAXSEQ_PROCESSES is set but JAXSEQ_PROCESS is not"),
        ({"JAXSEQ_PROCESS": "2"}, "JAXSEQ_PROCESS=2 must be below JAXSEQ_PROCESSES=2"),
        ({"JAXSEQ_PROCESS": "-1"}, "JAXSEQ_PROCESS=-1 must be a whole number"),
        ({"JAXSEQ_PROCESSES": "two"}, "JAXSEQ_PROCESSES=two must be a whole number"),
        ({"JAXSEQ_COORDINATOR": "here"}, "JAXSEQ_COORDINATOR=here must be host:port"),
        ({"JAXSEQ_LOCAL_DEVICES": "0;1"}, "JAXSEQ_LOCAL_DEVICES=0;1 must be numbers"),
    ],
)
def test_variables_that_make_no_sense_are_refused(changes, message, monkeypatch):
    for name, value in (launched(1, 1) | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distribution.initialize_processes()


@pytest.mark.parametrize("name", ["init_timeout_s", "heartbeat_timeout_s"])
def test_timeouts_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        distribution.initialize_processes(**{name: 0})


def test_a_free_port_is_free():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
