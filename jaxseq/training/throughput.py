"""Training time in total, and speed since the last log line."""

import time


class Throughput:
    """A clock that runs during training steps only; evaluation and saving are not counted.

    ``seconds`` is the total over all resumptions of a run.
    """

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds
        self._started = 0.0
        self.reset()

    def start(self) -> None:
        """Start the clock, or restart it after a pause."""
        self._started = time.perf_counter()

    def lap(self) -> float:
        """Add the time since the last ``start`` or ``lap`` to the totals; returns it."""
        now = time.perf_counter()
        passed, self._started = now - self._started, now
        self.seconds += passed
        self._window_seconds += passed
        return passed

    def pass_over(self) -> float:
        """Add the time since the last ``start`` or ``lap``, of a compilation, to the total alone; returns it."""
        now = time.perf_counter()
        passed, self._started = now - self._started, now
        self.seconds += passed
        return passed

    def add_step(self, tokens: int) -> None:
        """Count a finished step."""
        self._steps += 1
        self._tokens += tokens

    def reset(self) -> None:
        """Begin a new measurement of the speed; the total stays."""
        self._steps, self._tokens, self._window_seconds = 0, 0, 0.0

    def flush(self) -> dict[str, float]:
        """Return tokens and steps a second since the last reset, if there were steps, and reset."""
        rates = {}
        if self._steps:
            rates["tokens_per_second"] = self._tokens / self._window_seconds
            rates["steps_per_second"] = self._steps / self._window_seconds
        self.reset()
        return rates
