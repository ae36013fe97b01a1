"""A watchdog that ends the process when a training step hangs, so that a supervisor can start it again."""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_HUNG = 76
"""Exit code after a step that took too long."""

REMEMBERED = 64
MINIMUM_STEPS = 3
"""Steps whose durations make a median."""

BUSY_FILES = (
    os.path.join("jax", "_src", "compiler.py"),
    os.path.join("jax", "_src", "interpreters", "mlir.py"),
    os.path.join("jax", "_src", "interpreters", "partial_eval.py"),
    "pdb.py",
    "bdb.py",
)
"""While the watched thread runs a function of these files, it compiles or is being debugged, and does not hang."""


class Watchdog:
    """Ends the process with EXIT_HUNG when a step takes longer than ``max(minimum_s, factor * median)``.

    The median is that of the last 64 durations between calls of :meth:`step`; before there are three, nothing is
    watched. Compilation is not counted, nor is anything within :meth:`paused`. The clock is a thread that adds up its
    own ticks: while the whole process is stopped (Ctrl-Z), no time passes. The stacks of all threads are written to
    standard error first.

    Args:
        factor: None turns the watchdog off.
        minimum_s: the shortest limit in seconds.
        tick_s: how often the clock looks.
        end: called instead of ``os._exit`` (tests).

    Raises:
        ValueError: a factor that is not above 1, or a minimum or tick that is not above 0.
    """

    def __init__(
        self,
        factor: float | None,
        minimum_s: float = 60.0,
        *,
        tick_s: float = 0.5,
        end: Callable[[int], object] = os._exit,
    ):
        if factor is not None and not factor > 1:
            raise ValueError(f"the watchdog's factor must be above 1, not {factor}")
        if not minimum_s > 0 or not tick_s > 0:
            raise ValueError(f"the watchdog's minimum_s and tick_s must be above 0, not {minimum_s} and {tick_s}")
        self._factor, self._minimum, self._tick, self._end = factor, minimum_s, tick_s, end
        self._durations: deque[float] = deque(maxlen=REMEMBERED)
        self._last: float | None = None  # of the last step; None after a pause
        self._elapsed = 0.0
        self._pauses = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched = threading.get_ident()

    def step(self) -> None:
        """A step has ended, in the thread that is watched; the first call starts the clock."""
        if self._factor is None:
            return
        now = time.monotonic()
        if self._last is not None:
            self._durations.append(now - self._last)
        self._last, self._elapsed = now, 0.0
        if self._thread is None:
            self._watched = threading.get_ident()
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is watched within; the step around it has no duration."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._last, self._elapsed = None, 0.0

    def close(self) -> None:
        """End the clock."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def limit(self) -> float | None:
        """The longest time that a step may take, in seconds; None if nothing is watched."""
        if self._factor is None or len(self._durations) < MINIMUM_STEPS:
            return None
        return max(self._minimum, self._factor * statistics.median(self._durations))

    def _run(self) -> None:
        while not self._closed.wait(self._tick):
            limit = self.limit
            if limit is None or self._pauses or _is_busy(self._watched):
                self._elapsed = 0.0
                continue
            self._elapsed += self._tick
            if self._elapsed > limit:
                self._report(limit)
                self._end(EXIT_HUNG)
                return

    def _report(self, limit: float) -> None:
        stream = sys.__stderr__
        if stream is None:
            return
        with contextlib.suppress(OSError, ValueError):
            print(
                f"watchdog: a step has taken more than {limit:.1f} s, of which the median is "
                f"{statistics.median(self._durations):.3g} s; exit code {EXIT_HUNG}. The stacks of all threads:",
                file=stream,
                flush=True,
            )
            faulthandler.dump_traceback(stream, all_threads=True)


def _is_busy(thread: int) -> bool:
    """Whether a thread is within a function of BUSY_FILES."""
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_filename.endswith(BUSY_FILES):
            return True
        frame = frame.f_back
    return False
