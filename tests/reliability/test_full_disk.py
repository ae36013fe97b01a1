"""A run whose disk is full, whose files may not grow, which may not open files, or which another process uses: it ends
with one line and a code above 0, has no results without parameters, and goes on bit for bit when there is room.
"""

import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from experiment_processes import (
    LANGUAGE_MODEL,
    Ended,
    checksums,
    command,
    ended,
    environment,
    results,
    steps,
)

from tests.experiments.small_runs import write_book

LAST = 6
PAGE = 4096
FILLED = 0
"""A size: room enough until the last checkpoint is there, none afterwards."""
FILLER = """(while [ ! -d {disk}/run/checkpoints/0000000{last} ]; do sleep 0.01; done
    dd if=/dev/zero of={disk}/filler bs=4k) > /dev/null 2>&1 &"""
MOUNTED = "mount -t tmpfs -o size={size} tmpfs {disk}"


class Whole(NamedTuple):
    """A run that nobody disturbed."""

    run: Path
    text: Path
    env: dict[str, str]
    pages: dict[str, int]
    """Pages of its files: those before training, of the largest checkpoint, and half of the smallest."""

    def command(self, run: Path) -> list[str]:
        return command(LANGUAGE_MODEL, run, "--text", str(self.text))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    scratch = tmp_path_factory.mktemp("whole")
    env, text = environment(scratch / "xla"), write_book(scratch)
    run = Whole(scratch / "run", text, env, {})
    done = ended(run.command(run.run), env)
    assert done.code == 0, done.err
    assert steps(run.run) == [2, 4, LAST]
    first = ["config.json", "environment.json", "text_generator.json", "vocabulary.json", "checksums.json"]
    run.pages["first"] = sum(pages(run.run / name) for name in [*first, ".lock", "parameters.json"])
    sizes = [pages(folder) for folder in (run.run / "checkpoints").iterdir()]
    run.pages["checkpoint"], run.pages["half"] = max(sizes), min(sizes) // 2
    return run


def pages(path: Path) -> int:
    """Pages of a file, or of all files in a folder, as tmpfs counts them."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(-(-file.stat().st_size // PAGE) for file in files if file.is_file())


def private_mounts() -> bool:
    """Whether this user can mount a file system in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    trial = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=4k tmpfs /mnt"]
    return subprocess.run(trial, capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not private_mounts(), reason="a small file system cannot be mounted here")


def on_small_disk(whole: Whole, scratch: Path, size: int) -> tuple[Ended, Ended, Path, Path]:
    """Run on a disk of so many pages, then again after room was made.

    Returns how both processes ended, and copies of the folder after each.
    """
    disk, before, after = scratch / "disk", scratch / "before", scratch / "after"
    disk.mkdir()
    words = shlex.join(whole.command(disk / "run"))
    lines = [
        MOUNTED.format(size=(size or 1000) * PAGE, disk=disk),
        FILLER.format(disk=disk, last=LAST) if size == FILLED else "",
        f"code=0; {words} > {scratch}/1.out 2> {scratch}/1.err || code=$?; echo $code > {scratch}/1.code",
        f"cp -a {disk} {before}",
        f"rm -f {disk}/filler; mount -o remount,size=64m {disk}",
        f"code=0; {words} > {scratch}/2.out 2> {scratch}/2.err || code=$?; echo $code > {scratch}/2.code",
        f"cp -a {disk} {after}",
    ]
    done = ended(["unshare", "-rm", "sh", "-ec", "\n".join(lines)], whole.env, timeout=600)
    assert done.code == 0, done.err
    one, two = (
        Ended(int((scratch / f"{n}.code").read_text()), *((scratch / f"{n}.{s}").read_text() for s in ("out", "err")))
        for n in (1, 2)
    )
    return one, two, before / "run", after / "run"


def check_disturbed(done: Ended, run: Path, told: str) -> None:
    """A disturbed run has parameters of the last step, or a code above 0 and no results; it says why in one line."""
    saved = steps(run)
    assert "Traceback" not in done.err and "Traceback" not in done.out, f"{told}: {done.err[-3000:]}"
    assert len(done.err) < 3000, f"{told}: {done.err[:3000]}"
    if LAST not in saved:
        assert done.code not in (0, 75), f"{told}: saved {saved}"
        assert not (run / "results.json").exists(), f"{told}: results, but saved {saved}"
    if done.code != 0:
        assert done.code == 1, f"{told}: code {done.code}: {done.err}"
        assert done.err.splitlines()[-1].startswith("error: "), f"{told}: {done.err}"
        assert str(run.parent) in done.err or "disk/run" in done.err, f"{told}: no file is named: {done.err}"


def check_finished(done: Ended, run: Path, whole: Whole, told: str) -> None:
    """The run has ended as one that nobody disturbed, bit for bit."""
    assert done.code == 0, f"{told}: {done.err}"
    assert checksums(run) == checksums(whole.run), told
    assert results(run) == results(whole.run), told


ROOM = {
    "not for config.json": lambda pages: 1,
    "for config.json alone": lambda pages: 2,
    "for no checkpoint": lambda pages: pages["first"] + pages["half"],
    "for one checkpoint": lambda pages: pages["first"] + pages["checkpoint"] + pages["half"],
    "for all but the last checkpoint": lambda pages: pages["first"] + 2 * pages["checkpoint"] + pages["half"],
    "for all but the results": lambda pages: FILLED,
}


def marked(room: str):
    return pytest.param(room, marks=pytest.mark.full if room == "for all but the last checkpoint" else pytest.mark.slow)


@needs_mounts
@pytest.mark.parametrize("room", [marked(room) for room in ROOM])
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(whole, tmp_path, room):
    full, again, before, after = on_small_disk(whole, tmp_path, ROOM[room](whole.pages))
    check_disturbed(full, before, room)
    assert full.code == 1 and "No space left on device" in full.err, (room, full.err)
    saved = steps(before)
    told = "checkpoints" if "checkpoint" in room else ".json"
    # The size of a checkpoint depends on Orbax's threads: all of them may fit, and then a later file does not.
    assert told in full.err.splitlines()[-1] or ("all but" in room and LAST in saved), (room, full.err)
    fits = {"for one checkpoint": 1, "for all but the last checkpoint": 2, "for all but the results": 3}.get(room, 0)
    slack = 1 if "checkpoint" in room and fits else 0  # while it is written it takes more room than afterwards
    assert fits - slack <= len(saved) <= fits + slack, (room, full.err)
    check_finished(again, after, whole, room)


def limited(whole: Whole, limit: str, run: Path) -> Ended:
    """Run with a limit of the shell."""
    return ended(["bash", "-c", f"{limit}; exec {shlex.join(whole.command(run))}"], whole.env)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [16, 20, 24, 32, 40, 64])
def test_a_run_without_file_descriptors_says_so_and_goes_on(whole, tmp_path, limit):
    done = limited(whole, f"ulimit -n {limit}", tmp_path / "run")
    check_disturbed(done, tmp_path / "run", f"ulimit -n {limit}")
    check_finished(ended(whole.command(tmp_path / "run"), whole.env), tmp_path / "run", whole, f"after {limit}")


@pytest.mark.slow
@pytest.mark.parametrize("kib", [0, 1, 2, 4, 8, 64])
def test_a_run_whose_files_may_not_grow_says_so_and_goes_on(whole, tmp_path, kib):
    done = limited(whole, f"ulimit -f {kib}", tmp_path / "run")
    check_disturbed(done, tmp_path / "run", f"ulimit -f {kib}")
    check_finished(ended(whole.command(tmp_path / "run"), whole.env), tmp_path / "run", whole, f"after {kib}")


@pytest.mark.slow
def test_of_two_processes_on_one_folder_the_second_stops_with_a_line(whole, tmp_path):
    run = tmp_path / "run"
    with subprocess.Popen(
        whole.command(run), env=whole.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as first:
        while first.poll() is None and not (run / "config.json").exists():
            time.sleep(0.002)
        first.send_signal(19)  # SIGSTOP: it keeps the lock for as long as the second takes
        try:
            second = ended(whole.command(run), whole.env)
        finally:
            first.send_signal(18)
        assert first.wait(timeout=300) == 0, first.stderr.read()
    assert second.code == 1
    assert second.err.splitlines() == [f"error: {run} is in use by another process (process {first.pid})"]
    check_finished(Ended(0, "", ""), run, whole, "the first")
