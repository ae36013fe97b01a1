"""Stopping when asked: a signal lets the step finish and the state be saved."""

import os
import signal
import threading
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75
"""Exit code after SIGINT or SIGTERM: the state is saved, the same command goes on (EX_TEMPFAIL)."""


class Interrupted(SystemExit):
    """Training was asked to stop and has saved its state; uncaught, it exits with EXIT_INTERRUPTED."""

    def __init__(self, step: int):
        super().__init__(EXIT_INTERRUPTED)
        self.step = step


class Interrupts:
    """Notes SIGINT and SIGTERM in ``name`` while entered (main thread); a second SIGINT stops at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.name is None:
            self.name = signal.Signals(number).name
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            os.write(2, f"{self.name}: finishing the step, then saving{again}\n".encode())
