"""Stop on a signal: the current step finishes and the state is saved."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

EXIT_INTERRUPTED = 75
"""Exit code after SIGINT or SIGTERM: the state is saved and the same command resumes (EX_TEMPFAIL)."""

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class Interrupted(SystemExit):
    """Training was stopped by a signal and has saved its state; uncaught, it exits with EXIT_INTERRUPTED."""

    def __init__(self, step: int):
        super().__init__(EXIT_INTERRUPTED)
        self.step = step


class SignalHandler:
    """While entered (in the main thread), records SIGINT or SIGTERM in ``received``; a second SIGINT stops at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

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
