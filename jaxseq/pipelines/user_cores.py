"""The contract check of cores that come from a user's file."""

from collections.abc import Sequence
from functools import partial

from jaxseq.cores import make_core
from jaxseq.testing import ContractError, check_core


def check_user_cores(names: Sequence[str], features: int, options: Sequence[str] = ()) -> None:
    """Check those of the cores that a user's file defines (FILE.py:CLASS) against the main laws of the contract.

    Splitting into single steps, padding, documents and the initial carry, with random parameters: some seconds for each
    core. ``features`` and ``options`` are as for ``make_core``.

    Raises:
        ValueError: a core breaks a law or fails; the message names the law.
    """
    for name in dict.fromkeys(name for name in names if ".py:" in name):
        make_core(name, features, options)  # raises ValueError for a file, a class or an option that there is not
        try:
            check_core(partial(make_core, name, features, options), quick=True)
        except ContractError as error:
            raise ValueError(f"core {name!r} breaks the contract of cores: {error}") from None
        except Exception as error:
            raise ValueError(f"core {name!r} fails: {type(error).__name__}: {error}") from error
        print(f"core {name}: the contract of cores holds (jaxseq.testing.check_core, quick)", flush=True)
