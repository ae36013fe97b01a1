"""Check this machine and this installation, one line a check, with an advice where something is to be done.

    python -m jaxseq doctor            # all checks
    python -m jaxseq doctor --quick    # those that compile nothing
    python -m jaxseq doctor --json     # for programs

The exit code is 0 if no check failed (warnings do not count), 1 if one did, 2 for unknown options, 75 if it was
interrupted. Nothing is changed but the compilation cache; the checkpoint is written to a temporary folder.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from jaxseq.doctor.check import Check, Finding, run_checks
from jaxseq.terminal import standard_outputs

WIDTHS = {"ok": 5, "name": 20}


def checks() -> tuple[Check, ...]:
    """All checks, in the order in which they run.

    Their modules are imported when they run, so that a package that cannot be imported is one failed line.
    """

    def later(module: str, function: str, *arguments: Callable[[], Any]) -> Callable[[], Iterable[Finding]]:
        def run() -> Iterator[Finding]:
            given = [argument() for argument in arguments]
            yield from getattr(import_module(f"jaxseq.doctor.{module}"), function)(*given)

        return run

    @cache
    def events() -> Any:
        return import_module("jaxseq.doctor.storage").CacheEvents().counts

    def begin_counting() -> Iterator[Finding]:
        with contextlib.suppress(ImportError):  # of which the check of the cache tells
            events()
            import_module("jaxseq.training").enable_compilation_cache()
        yield from ()

    return (
        Check("python", later("packages", "check_python"), needs_jax=False),
        Check("packages", later("packages", "check_packages"), needs_jax=False),
        Check("plugins", later("packages", "check_plugins"), needs_jax=False),
        Check("extras", later("packages", "check_extras"), needs_jax=False),
        Check("cores", later("machine", "check_cores"), needs_jax=False),
        Check("variables", later("machine", "check_variables"), needs_jax=False),
        Check("disk", later("machine", "check_folders"), needs_jax=False),
        Check("malloc", later("machine", "check_malloc"), needs_jax=False),
        Check("text", later("machine", "check_text"), needs_jax=False),
        Check("start", later("machine", "check_start"), needs_jax=False),
        Check("devices", later("machine", "check_devices")),
        Check("cache", begin_counting),
        Check("xla flag", later("arithmetic", "check_sums"), quick=False),
        Check("arithmetic", later("arithmetic", "check_arithmetic"), quick=False),
        Check("cudnn", later("arithmetic", "check_cudnn"), quick=False),
        Check("choices", later("choices", "check_choices"), quick=False),
        Check("checkpoint", later("storage", "check_checkpoints")),
        Check("cache", later("storage", "check_cache", events)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks of these arguments and print what they find; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m jaxseq doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="leave out what compiles programs (default: all checks)")
    parser.add_argument("--json", action="store_true", help="print one JSON object (default: one line a check)")
    options = parser.parse_args(arguments)
    begin, found = time.perf_counter(), list[Finding]()
    for finding in run_checks(check for check in checks() if check.quick or not options.quick):
        found.append(finding)
        if not options.json:
            print(line_of(finding), flush=True)
    counts = {status: sum(finding.status == status for finding in found) for status in ("ok", "warn", "fail")}
    seconds = round(time.perf_counter() - begin, 1)
    if options.json:
        rows = [vars(finding) for finding in found]
        print(json.dumps({"checks": rows, **counts, "seconds": seconds}, indent=1, ensure_ascii=True))
    else:
        print(f"{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failed in {seconds} s", flush=True)
    return 1 if counts["fail"] else 0


def line_of(finding: Finding) -> str:
    """The line of a finding, and below it that of its advice."""
    line = f"{finding.status:{WIDTHS['ok']}} {finding.name:{WIDTHS['name']}} {finding.found}"
    return f"{line}\n{'':{WIDTHS['ok']}} -> {finding.advice}" if finding.advice else line


if __name__ == "__main__":
    with standard_outputs():
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(75)  # as an experiment that is stopped
