"""Start the processes of one machine, and start all again when one dies.

    python -m jaxseq.launch --processes 2 --max-restarts 3 experiments/language_model.py --mesh data=-1 --run runs/d
    python -m jaxseq.launch --processes 2 --devices-per-process 4 -m package.module --option value

Each process gets its rank in the environment, from which ``jaxseq.distribution.initialize_processes`` connects it to
the others. Its output lines are prefixed with ``[rank]``. When a process dies, the others are killed, and all are
started again on another port; a training script then resumes from its last checkpoint.

The exit code is 0 if all processes end with 0, else that of the process that died first in the last attempt: 128 + n
for a death by signal n. Codes 75 (interrupted, state saved) and 2 (wrong arguments) are never restarted. SIGTERM,
SIGINT and SIGHUP are handed on to the processes; a second one, or the end of ``--grace``, kills them. On Linux the
processes die with the launcher, even by SIGKILL. Their own children are killed with them, unless the launcher itself is
killed.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO, NoReturn, TextIO

from jaxseq.terminal import discard, escape_controls, printable

COORDINATOR, PROCESSES, PROCESS = "JAXSEQ_COORDINATOR", "JAXSEQ_PROCESSES", "JAXSEQ_PROCESS"
LOCAL_DEVICES = "JAXSEQ_LOCAL_DEVICES"
"""The numbers of a process's accelerators on its machine; CPU devices are not numbered."""

EXIT_USAGE, EXIT_INTERRUPTED = 2, 75
FINAL_CODES = (EXIT_USAGE, EXIT_INTERRUPTED)
"""Exit codes after which another attempt would end alike, or was not asked for."""

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
POLL_S = 0.05
LAST_WORDS_S = 1.0
"""After an error, the time that the other processes get to report it too; after a signal they get none."""

PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Run the command line and exit with the code of the processes."""
    options, command = parse_arguments(sys.argv[1:])
    sys.exit(Launcher(options, command).run())


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's options, and the command of each process; wrong arguments exit with code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxseq.launch",
        description="Start the processes of one machine, and start all again when one dies.",
        usage="%(prog)s [options] (SCRIPT | -m MODULE) [arguments]",
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="number of processes")
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N", help="further attempts after a death (0)")
    parser.add_argument(
        "--devices-per-process",
        type=int,
        metavar="K",
        help="CPU devices of a process, or its share of the machine's GPUs: process r has rK to rK+K-1 (one)",
    )
    parser.add_argument(
        "--grace", type=float, default=120.0, metavar="S", help="seconds from such a signal to SIGKILL (120)"
    )
    count = _own_words(arguments)
    options, rest = parser.parse_args([*map(printable, arguments[:count])]), list(arguments[count:])
    for name, least in (("processes", 1), ("max_restarts", 0), ("devices_per_process", 1), ("grace", 0)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if rest[:1] == ["--"]:
        rest = rest[1:]
    if rest[:1] == ["-m"] and len(rest) < 2:
        parser.error("-m needs the name of a module")
    if not rest:
        parser.error("a script, or -m and a module, must follow the options")
    if rest[0] != "-m" and not os.path.isfile(rest[0]):
        parser.error(f"there is no script {printable(rest[0])}")
    return options, [sys.executable, *rest]


def _own_words(arguments: Sequence[str]) -> int:
    """The number of words before the script, -m or ``--``: each option has a value, ``--a b`` or ``--a=b``."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("-") and arguments[index] not in ("-m", "--"):
        alone = "=" in arguments[index] or arguments[index] in ("-h", "--help")
        index += 1 if alone else 2
    return min(index, len(arguments))


class Launcher:
    """Runs the processes of a command, attempt by attempt."""

    def __init__(self, options: argparse.Namespace, command: Sequence[str]):
        self.options, self.command = options, list(command)
        self.signals: list[int] = []
        """The signals that the launcher has received."""

    def run(self) -> int:
        """Make attempts until one succeeds or none is left; returns the exit code."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP after nohup
                signal.signal(number, self._receive)
        restarts = self.options.max_restarts
        for attempt in range(restarts + 1):
            code = _Attempt(self.options, self.command, self.signals, attempt).run()
            if code == 0 or code in FINAL_CODES or self.signals:
                break
            if attempt < restarts:
                say(f"restart {attempt + 1} of {restarts}")
            elif restarts:
                say(f"{restarts} restarts were not enough")
        return code

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)


class _Attempt:
    """One start of all processes, until the last of them has ended."""

    def __init__(self, options: argparse.Namespace, command: list[str], signals: list[int], attempt: int):
        self.options, self.command, self.signals, self.attempt = options, command, signals, attempt
        self.processes: list[subprocess.Popen[bytes]] = []
        self.pumps: list[threading.Thread] = []
        self.output = threading.Lock()
        self.first: tuple[int, int] | None = None
        """Rank and exit code of the process that died first."""
        self.forwarded = 0
        self.deadline = float("inf")
        """When the processes that are left are killed."""

    def run(self) -> int:
        """Start, supervise and clean up; returns 0 or the exit code of the process that died first."""
        try:
            coordinator = f"127.0.0.1:{free_port()}"
            for rank in range(self.options.processes):
                self._start(rank, coordinator)
            while any(process.returncode is None for process in self.processes):
                self._look()
                self._forward()
                if time.monotonic() >= self.deadline:
                    self._kill()
                time.sleep(POLL_S)
            self._look()
        finally:
            self._kill()
            for process in self.processes:
                process.wait()
            for pump in self.pumps:
                pump.join(timeout=2)  # a child of the process may hold the pipe open
        return 0 if self.first is None else self.first[1]

    def _start(self, rank: int, coordinator: str) -> None:
        process = subprocess.Popen(
            self.command,
            env=environment(rank, self.options.processes, coordinator, self.options.devices_per_process),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the launcher alone; killpg reaches the process's children
            preexec_fn=_die_with_parent(),
        )
        self.processes.append(process)
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert source is not None
            pump = threading.Thread(target=self._pump, args=(rank, source, target), daemon=True)
            pump.start()
            self.pumps.append(pump)

    def _pump(self, rank: int, source: IO[bytes], target: TextIO) -> None:
        """Copy lines with the rank before them; a terminal gets control characters as escapes.

        Output that cannot be written is dropped: training goes on.
        """
        terminal = target.isatty()
        with source:
            for line in source:
                if terminal:
                    line = escape_controls(line.decode("utf-8", "backslashreplace").rstrip("\r\n")).encode()
                with self.output:
                    try:
                        target.buffer.write(f"[{rank}] ".encode() + line.rstrip(b"\r\n") + b"\n")
                        target.flush()
                    except (OSError, ValueError):
                        discard(target)

    def _look(self) -> None:
        """Notice processes that have ended. The first failure sets the time at which the others are killed."""
        for rank, process in enumerate(self.processes):
            died = process.poll()
            if not died or self.first is not None:
                continue
            self.first = (rank, died if died > 0 else 128 - died)
            say(f"process {rank} {describe_code(died)}")
            wait = self.options.grace if died == EXIT_INTERRUPTED else LAST_WORDS_S if died > 0 else 0.0
            self.deadline = min(self.deadline, time.monotonic() + wait)

    def _forward(self) -> None:
        """Hand signals of the launcher on: the first one as it is, a second one as SIGKILL."""
        if self.forwarded == len(self.signals):
            return
        number = self.signals[self.forwarded]
        self.forwarded += 1
        if self.forwarded > 1:
            say(f"{signal.Signals(number).name} again: killing the processes")
            self.deadline = 0.0
            return
        say(f"{signal.Signals(number).name}: handed on; the processes have {self.options.grace:g} s")
        self.deadline = min(self.deadline, time.monotonic() + self.options.grace)
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    def _kill(self) -> None:
        """Kill every process that is left, stopped ones too, and the children of all."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def environment(rank: int, processes: int, coordinator: str, devices: int | None) -> dict[str, str]:
    """The environment of a process: its rank, the coordinator, its devices, and unbuffered output."""
    first = rank * (devices or 1)
    variables = os.environ | {
        COORDINATOR: coordinator,
        PROCESSES: str(processes),
        PROCESS: str(rank),
        LOCAL_DEVICES: ",".join(map(str, range(first, first + (devices or 1)))),
        "PYTHONUNBUFFERED": "1",
    }
    if devices is not None:
        flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        variables["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"])
    return variables


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def describe_code(code: int) -> str:
    """A return code of ``subprocess`` in words."""
    if code >= 0:
        return f"ended with exit code {code}" + (" (interrupted)" if code == EXIT_INTERRUPTED else "")
    try:
        return f"died by {signal.Signals(-code).name}"
    except ValueError:
        return f"died by signal {-code}"


def say(text: str) -> None:
    """Write a line of the launcher's own."""
    try:
        print(f"jaxseq.launch: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        discard(sys.stderr)


def _die_with_parent() -> Callable[[], None] | None:
    """A function for the child, after which Linux kills it when the launcher dies; None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: a child may do next to nothing before it runs its program
    launcher = os.getpid()

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:  # it died before
            os._exit(1)

    return prepare


if __name__ == "__main__":
    main()
