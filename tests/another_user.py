"""Tests of permissions, which do not hold for root."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def another_user(folder: Path, *, owner: bool = False) -> Iterator[None]:
    """In the block, as a user who is not root; ``owner`` gives the folder and its files to this user before."""
    if os.geteuid():
        yield
        return
    for path in (folder, *folder.rglob("*")) if owner else ():
        os.chown(path, 65534, 65534)
    for parent in (folder, *folder.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
