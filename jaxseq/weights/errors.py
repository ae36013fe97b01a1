"""The error of the room, and how it shows names from files."""

from collections.abc import Iterable

SHOWN = 8


class WeightsError(ValueError):
    """A file that is not what it says, or tensors that do not fit a model. One line, with the cause."""


def shown(text: object) -> str:
    """A name from a file: quoted, without control characters, cut at 80."""
    full = str(text)
    return repr(full if len(full) <= 80 else full[:77] + "...")


def has_surrogates(name: str) -> bool:
    """Whether a name holds half of a surrogate pair, which UTF-8 cannot hold."""
    return any("\ud800" <= character <= "\udfff" for character in name)


def listed(names: Iterable[str]) -> str:
    """The first ``SHOWN`` names, and the number of the others."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
