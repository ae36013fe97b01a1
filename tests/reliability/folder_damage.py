"""Damages of a file or a folder of a run, and a block of code whose time and memory are bounded."""

import contextlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

Damage = Callable[[Path], None]

BYTES = 4 << 30
"""Address space that a bounded block may take beyond what the process has already."""


class TooSlowError(BaseException):
    """A hang. No Exception, so that no handler takes it for a damaged file."""


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Interrupt the block after some seconds, and refuse it more than BYTES of further address space."""

    def stop(number, frame):
        raise TooSlowError(f"not done after {seconds} s")

    before, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def flipped(place: float, bit: int = 0) -> Damage:
    """Flip a bit of the byte at this fraction of the file."""

    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        if data:
            data[min(int(place * len(data)), len(data) - 1)] ^= 1 << bit
        file.write_bytes(data)

    return damage


def replaced(content: bytes) -> Damage:
    """Write other bytes."""
    return lambda file: file.write_bytes(content) and None


def removed(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def after_removal(make: Damage) -> Damage:
    """Something else in the place of a file or folder."""

    def damage(file: Path) -> None:
        removed(file)
        make(file)

    return damage


def spaced(file: Path) -> None:
    """Put two blanks at the end: bytes that JSON ignores."""
    with open(file, "ab") as stream:
        stream.write(b"  ")


OTHERS: dict[str, Damage] = {
    "deleted": removed,
    "a FIFO": after_removal(os.mkfifo),
    "a link to /dev/zero": after_removal(lambda file: file.symlink_to("/dev/zero")),
    "a link to itself": after_removal(lambda file: file.symlink_to(file)),
}
"""Of files and folders."""

OF_FOLDERS: dict[str, Damage] = OTHERS | {
    "a file": after_removal(lambda folder: folder.write_bytes(b"{}")),
    "an empty folder": after_removal(os.mkdir),
}

OF_FILES: dict[str, Damage] = OTHERS | {
    "a folder": after_removal(os.mkdir),
    "flipped inside": flipped(0.5),
    "cut": cut,
    "empty": replaced(b""),
    "no UTF-8": replaced(b'{"a": "\xff\xfe"}'),
    "a list": replaced(b"[1, 2]"),
    "a number": replaced(b"7"),
    "null": replaced(b"null"),
    "an empty object": replaced(b"{}"),
    "nested deeply": replaced(b"[" * 100_000 + b"]" * 100_000),
    "nested objects": replaced(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a string of 20 MB": replaced(json.dumps("a" * 20_000_000).encode()),
    "a huge integer": replaced(b'{"a": ' + b"9" * 10_000 + b"}"),
    "a key twice": replaced(b'{"a": 1, "a": 2}'),
}

FLIPS: dict[str, Damage] = {
    f"bit {bit} flipped at {place}": flipped(place, bit)
    for place, bit in [(0.0, 0), (0.1, 3), (0.25, 1), (0.4, 6), (0.6, 2), (0.75, 5), (0.9, 4), (0.97, 0), (1.0, 1)]
}


def edited(file: Path, change: Callable[[dict], None]) -> None:
    """Change the object in a JSON file, which stays valid."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def swapped(one: Path, two: Path) -> None:
    """Swap two files."""
    between = one.with_name("between")
    one.rename(between)
    two.rename(one)
    between.rename(two)
