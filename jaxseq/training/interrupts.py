"""Stop on a signal: in training the current step finishes and the state is saved; elsewhere the program ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeAlias

import jax
from jax.experimental import multihost_utils

EXIT_INTERRUPTED = 75
"""Exit code after SIGINT, SIGTERM or SIGHUP: the state is saved and the same command resumes (EX_TEMPFAIL)."""

HANGUP = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class Interrupted(SystemExit):
    """Training was stopped by a signal and has saved its state; uncaught, it exits with EXIT_INTERRUPTED."""

    def __init__(self, step: int):
        super().__init__(EXIT_INTERRUPTED)
        self.step = step


class SignalHandler:
    """While entered (in the main thread), records SIGINT, SIGTERM or SIGHUP in ``received``; a second SIGINT stops at
    once. A signal that the process ignores, as SIGHUP after ``nohup``, stays ignored.

    With several processes a signal to one of them stops all before the same step. JAX's preemption service notices
    SIGTERM and agrees on the step, in a second or two; the others are handed on to it as SIGTERM.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            signals = _heeded(signal.SIGINT, *HANGUP, *([signal.SIGTERM] if jax.process_count() == 1 else []))
            self._previous = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def stop_before(self, step: int) -> bool:
        """Whether training stops before this step; all processes call it once before each step."""
        if jax.process_count() == 1:
            return self.received is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.received = self.received or "SIGTERM"
            return True
        return False

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number).name
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            with contextlib.suppress(OSError):  # SIGHUP comes when the terminal is gone
                os.write(2, f"{self.received}: finishing the step, then saving{again}\n".encode())
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def ending_signals() -> Iterator[None]:
    """In the block (in the main thread), SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does.

    After it, as long as the process takes to end, they end it at once with EXIT_INTERRUPTED, unless they had a handler
    before. A signal that the process ignores stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _interrupt) for number in _heeded(signal.SIGTERM, *HANGUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, _end if handler in (signal.SIG_DFL, None) else handler)


def _heeded(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those of the signals that the process does not ignore."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)
