"""Records of the steps that were skipped because their loss, gradient or update was not finite."""

from collections.abc import Mapping
from pathlib import Path

import jax

from jaxseq.files import JSON
from jaxseq.training.metrics import JsonLinesWriter
from jaxseq.typing import Array, Key


class NonfiniteLog:
    """Writes one line for each skipped step and counts the longest sequence of skipped steps.

    ``write`` is False on the processes that write no text files.
    """

    def __init__(self, file: Path, fingerprint: str, *, write: bool = True):
        self.file = file
        self.longest = 0
        """Largest number of consecutive skipped steps in this process."""
        self._fingerprint = fingerprint
        self._writer = JsonLinesWriter(file) if write else None

    def rewind(self, step: int) -> None:
        """Delete the lines after a step."""
        if self._writer is not None:
            self._writer.rewind(step)

    def add(self, step: int, metrics: Mapping[str, JSON], key: Key[Array, ""]) -> None:
        """Record a skipped step by what is needed to reproduce it: batch number, key and data fingerprint."""
        consecutive = int(metrics["nonfinite_in_row"])
        self.longest = max(self.longest, consecutive)
        if self._writer is None:
            return
        row = {
            "batch": step,
            "seed": jax.random.key_data(key).tolist(),
            "data_fingerprint": self._fingerprint,
            "loss": str(metrics["loss"]),
            "gradient_norm": str(metrics["gradient_norm"]),
            "in_row": consecutive,
        }
        self._writer.write(step + 1, row)
