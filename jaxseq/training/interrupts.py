"""Stop on a signal: the current step finishes and the state is saved."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

import jax
from jax.experimental import multihost_utils

EXIT_INTERRUPTED = 75
"""Exit code after SIGINT or SIGTERM: the state is saved and the same command resumes (EX_TEMPFAIL)."""

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class Interrupted(SystemExit):
    """Training was stopped by a signal and has saved its state; uncaught, it exits with EXIT_INTERRUPTED."""

    def __init__(self, step: int):
        super().__init__(EXIT_INTERRUPTED)
        self.step = step


class SignalHandler:
    """While entered (in the main thread), records SIGINT or SIGTERM in ``received``; a second SIGINT stops at once.

    With several processes a signal to one of them stops all before the same step. JAX's preemption service notices
    SIGTERM and agrees on the step, in a second or two; SIGINT is handed on to it as SIGTERM.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            signals = self.SIGNALS if jax.process_count() == 1 else self.SIGNALS[:1]
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
            os.write(2, f"{self.received}: finishing the step, then saving{again}\n".encode())
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
