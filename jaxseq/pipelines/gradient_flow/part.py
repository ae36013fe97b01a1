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


def check_counts(part: str, least: int = 1, **counts: int) -> None:
    """Raises ValueError unless every count is at least ``least``."""
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"{part}: {name} must be at least {least}, not {count}")


def check_positive(part: str, **numbers: float | int) -> None:
    """Raises ValueError unless every number is above 0; none may be NaN."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{part}: {name} must be above 0, not {number}")
