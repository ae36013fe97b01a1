"""Connect the processes of a run, as the environment says: those of ``jaxseq.launch``, or of a cluster."""

import os
import socket
import sys
import threading
import time

import jax
from jax._src import clusters  # JAX has no public way to ask whether it would detect a cluster

COORDINATOR, PROCESSES, PROCESS = VARIABLES = ("JAXSEQ_COORDINATOR", "JAXSEQ_PROCESSES", "JAXSEQ_PROCESS")
"""The variables that ``jaxseq.launch`` sets: ``host:port``, the number of processes, and the rank of this one."""

LOCAL_DEVICES = "JAXSEQ_LOCAL_DEVICES"
"""The numbers of this process's accelerators on its machine, ``0,1``; optional."""


def initialize_processes(*, init_timeout_s: int = 300, heartbeat_timeout_s: int = 100) -> None:
    """``jax.distributed.initialize()``, if the environment says that there are several processes.

    The variables of ``jaxseq.launch`` come first, then what JAX detects: Open MPI, SLURM, TPU, Kubernetes. With one
    process nothing happens; a second call does nothing. Call it before the first array is made. On processes other
    than 0, standard output is silenced from here on (file descriptor 1), standard error is not.

    Args:
        init_timeout_s: how long the processes wait for one another at the start.
        heartbeat_timeout_s: a process that is silent for so long is dead, and the others end.

    Raises:
        ValueError: half of the variables is set, or a value is not valid.
        RuntimeError: a JAX computation has already run; or the coordinator cannot be reached. If others do not come
            to process 0 in time, JAX aborts it, and a line on standard error says why.
    """
    for name, seconds in (("init_timeout_s", init_timeout_s), ("heartbeat_timeout_s", heartbeat_timeout_s)):
        if seconds < 1:
            raise ValueError(f"{name} must be at least 1, not {seconds}")
    if jax.distributed.is_initialized():
        return
    found = _from_variables() or _from_cluster(init_timeout_s)
    if found is None:
        return
    coordinator, processes, process, devices = found
    if process > 0:
        _await_coordinator(coordinator, process, init_timeout_s)
    # JAX's client ends the process, without a Python error, when the others do not come.
    late = (
        f"process {process} of {processes} is still waiting for the others at {coordinator} (limit {init_timeout_s} s)"
    )
    notice = threading.Timer(0.9 * init_timeout_s, print, (late,), {"file": sys.stderr, "flush": True})
    notice.daemon = True
    notice.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=init_timeout_s,
            heartbeat_timeout_seconds=heartbeat_timeout_s,
            # One machine needs no port that others can reach; by default JAX binds all addresses.
            coordinator_bind_address=coordinator if coordinator.startswith("127.0.0.1:") else None,
        )
    except RuntimeError as error:
        if "must be called before" in str(error):
            raise RuntimeError(
                "initialize_processes() must be called before the first JAX computation or look at devices: "
                f"this is process {process} of {processes}, and JAX has already started with its own devices only"
            ) from None
        reason = (str(error).splitlines() or ["no message"])[0]
        raise RuntimeError(
            f"process {process} of {processes} could not join the others by the coordinator {coordinator} "
            f"within {init_timeout_s} s: {reason}"
        ) from error
    finally:
        notice.cancel()
    if process > 0:
        _silence_standard_output()


def _from_variables() -> tuple[str, int, int, list[int] | None] | None:
    """Coordinator, number of processes, rank and devices from the launcher's variables; None without them."""
    given = [name for name in VARIABLES if os.environ.get(name)]
    if not given:
        return None
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise ValueError(f"{', '.join(given)} is set but {', '.join(missing)} is not: set all three, or none")
    processes, process = (_number(name) for name in (PROCESSES, PROCESS))
    coordinator = os.environ[COORDINATOR]
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{COORDINATOR}={coordinator} must be host:port")
    if not process < processes:
        raise ValueError(f"{PROCESS}={process} must be below {PROCESSES}={processes}")
    text = os.environ.get(LOCAL_DEVICES, "")
    if text and not all(part.isdecimal() for part in text.split(",")):
        raise ValueError(f"{LOCAL_DEVICES}={text} must be numbers with commas between them")
    devices = [int(part) for part in text.split(",")] if text else None
    return None if processes == 1 else (coordinator, processes, process, devices)


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise ValueError(f"{name}={text} must be a whole number, at least 0")
    return int(text)


def _from_cluster(timeout_s: int) -> tuple[str, int, int, list[int] | None] | None:
    """The same from a cluster that JAX detects; None without one, and on a cluster's single process."""
    if os.environ.get(PROCESSES) == "1":  # of the launcher, within an allocation of a cluster
        return None
    known = clusters.ClusterEnv._cluster_types
    kind = next((kind for kind in known if not kind.opt_in_only_method and kind.is_env_present()), None)
    if kind is None or kind.get_process_count() < 2:
        return None
    detected = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout_s)
    coordinator, processes, process, devices = detected
    if coordinator is None or processes is None or process is None:
        raise RuntimeError(f"{kind.__name__} names no coordinator, number of processes or rank")
    return coordinator, processes, process, None if devices is None else list(devices)


def _await_coordinator(coordinator: str, process: int, timeout_s: int) -> None:
    """Wait until the coordinator listens: JAX's own client ends the process without a Python error."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=min(5.0, timeout_s)):
                return
        except OSError as error:
            if time.monotonic() >= end:
                raise RuntimeError(
                    f"process {process} could not reach the coordinator {coordinator} within {timeout_s} s ({error}): "
                    "is process 0 running, and is this its address?"
                ) from None
            time.sleep(0.1)


def _silence_standard_output() -> None:
    sys.stdout.flush()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.close(silent)
