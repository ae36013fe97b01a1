"""The contract check of cores that come from a user's file."""


def check_user_cores(*names: str) -> None:
    """Check the cores among these names that a user's file defines (FILE.py:CLASS) against the contract of cores.

    Raises:
        ValueError: a core that breaks a law; the message names the law.
    """
