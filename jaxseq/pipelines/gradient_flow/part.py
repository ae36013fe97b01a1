"""The protocol of the parts of ``experiments/gradient_flow.py``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Say: TypeAlias = Callable[[str], None]
"""Prints a line of progress."""

Values: TypeAlias = dict[str, Any]
"""Measurements of a part: numbers, texts, lists and mappings of them, as in a JSON file."""


class Part(Protocol):
    """A frozen dataclass of sizes; its values are stored, so that they can be drawn again without computing."""

    def compute(self, seed: int, say: Say) -> Values:
        """Measure."""

    def draw(self, values: Values, file: Path) -> Path:
        """Draw the figure; raises ImportError without matplotlib."""

    def results(self, values: Values) -> dict[str, float]:
        """The main numbers, by name."""


def check_counts(part: str, **counts: int) -> None:
    """Raises ValueError unless every count is at least 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{part}: {name} must be at least 1, not {count}")
