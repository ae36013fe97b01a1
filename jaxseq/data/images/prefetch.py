"""Batches prepared ahead, in the background."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

from jaxseq.data.batch import Dataset, check_step

BatchT = TypeVar("BatchT")


class Prefetch(Generic[BatchT]):
    """``data(step)`` of a dataset, with the next ``depth`` steps prepared in one background thread.

    Batches are those of the dataset, which stays a pure function of the step: a step out of order is computed when it
    is asked for, and the steps after it are prepared next. An error of the dataset is raised at the step that asks for
    the batch. ``close`` (or the end of a ``with`` block) drops what is prepared and ends the thread; a ``Prefetch``
    that is never closed ends with the program.

    Args:
        dataset: a function of the step with a fingerprint; other attributes are handed on.
        depth: the number of prepared batches; memory for as many is needed.

    Raises:
        ValueError: a depth below 1.
    """

    def __init__(self, dataset: Dataset[BatchT], depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self.dataset, self.depth = dataset, depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ready: dict[int, Future[BatchT]] = {}
        self._closed = False
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """That of the dataset."""
        return self.dataset.fingerprint

    def __getattr__(self, name: str) -> Any:
        """An attribute of the dataset, such as ``steps_per_epoch``."""
        if name.startswith("_") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __call__(self, step: int) -> BatchT:
        """The batch of this step.

        Raises:
            RuntimeError: after ``close``.
        """
        step = check_step(step)
        if self._closed:
            raise RuntimeError("this Prefetch is closed")
        wanted = range(step, step + self.depth + 1)
        with self._lock:
            for other in [other for other in self._ready if other not in wanted]:
                self._ready.pop(other).cancel()
            for other in wanted:
                if other not in self._ready:
                    self._ready[other] = self._pool.submit(self.dataset, other)
            asked = self._ready.pop(step)
        return asked.result()

    def close(self) -> None:
        """End the thread, after the batch that is being prepared; more calls do nothing."""
        self._closed = True
        self._ready.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetch[BatchT]":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()
