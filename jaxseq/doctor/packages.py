"""Checks of what is installed: Python, the packages that jaxseq needs and their versions, extras, plugins of JAX."""

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxseq.doctor.check import Finding

PACKAGE = "jaxseq"
PYTHON = (3, 11)
HIDDEN_EXTRAS = ("cuda", "dev", "peers")
"""Extras that are no part of the line of extras: devices have checks of their own, the others are for development."""
PLUGIN = re.compile(r"jax-(cuda\d*|rocm\d*)-(plugin|pjrt)$|libtpu$|jax-metal$")
REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;()]*)\)?\s*(?:;(.*))?$")
EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")


def check_python() -> Iterator[Finding]:
    """The version of Python, and the place of the interpreter and of jaxseq."""
    place = Path(__file__).resolve().parents[1]
    found = f"{platform.python_version()} ({sys.executable}), jaxseq {version_of(PACKAGE) or 'uninstalled'} in {place}"
    if sys.version_info < PYTHON:
        yield Finding("fail", "python", found, f"install Python {PYTHON[0]}.{PYTHON[1]} or newer")
    else:
        yield Finding("ok", "python", found)


def check_packages() -> Iterator[Finding]:
    """Every package that jaxseq needs: that it is there, in the range of versions that jaxseq was tested with."""
    needed = requirements()
    if not needed:
        advice = f"install it, so that its requirements are known: pip install -e {Path(__file__).resolve().parents[2]}"
        yield Finding("warn", "packages", "jaxseq runs from a folder and is not installed", advice)
        return
    good, bad = [], False
    for name, wanted, extra in needed:
        version = version_of(name)
        if extra is not None:
            continue
        if version is None:
            bad = True
            yield Finding("fail", name, f"not installed; needed: {name}{wanted}", f"pip install '{name}{wanted}'")
        elif not satisfies(version, wanted):
            bad = True
            found = f"{version} is outside of the tested versions {wanted}"
            yield Finding("fail", name, found, f"pip install '{name}{wanted}'")
        else:
            good.append(f"{name} {version}")
    if jaxlib := version_of("jaxlib"):
        good.append(f"jaxlib {jaxlib}")
    yield Finding("ok", "packages", f"{'others: ' * bad}{', '.join(sorted(good))}")


def check_plugins() -> Iterator[Finding]:
    """Plugins of JAX for accelerators: their versions are those of jaxlib."""
    plugins = {
        str(name): distribution.version
        for distribution in importlib.metadata.distributions()
        if (name := distribution.metadata["Name"]) and PLUGIN.match(name.lower().replace("_", "-"))
    }
    if not plugins:
        yield Finding("ok", "plugins", "none: JAX computes on the CPU")
        return
    jaxlib = version_of("jaxlib") or ""
    listed = ", ".join(f"{name} {version}" for name, version in sorted(plugins.items()))
    others = [n for n, v in plugins.items() if n.startswith("jax") and numbers(v)[:3] != numbers(jaxlib)[:3]]
    if others:
        advice = f"pip install 'jax[cuda13]=={version_of('jax')}', which installs plugins of the same version"
        yield Finding("warn", "plugins", f"{listed}, but jaxlib {jaxlib}: versions differ", advice)
    else:
        yield Finding("ok", "plugins", listed)


def check_extras() -> Iterator[Finding]:
    """The optional parts of jaxseq that are installed, and the command that installs the others."""
    extras: dict[str, list[tuple[str, str]]] = {}
    for name, wanted, extra in requirements():
        if extra is not None and extra not in HIDDEN_EXTRAS:
            extras.setdefault(extra, []).append((name, wanted))
    there, missing, old = list[str](), list[str](), []
    for extra, packages in sorted(extras.items()):
        versions = [(name, wanted, version_of(name)) for name, wanted in packages]
        (missing if any(version is None for *_, version in versions) else there).append(extra)
        old += [(name, wanted, version) for name, wanted, version in versions if version]
    old = [(name, wanted, version) for name, wanted, version in old if not satisfies(version, wanted)]
    for name, wanted, version in old:
        found = f"{version} is outside of the tested versions {wanted}"
        yield Finding("warn", name, found, f"pip install '{name}{wanted}'")
    command = f"; not installed: {', '.join(missing)} (pip install '{PACKAGE}[{','.join(missing)}]')" if missing else ""
    yield Finding("ok", "extras", f"installed: {', '.join(there) or 'none'}{command}")


def requirements() -> list[tuple[str, str, str | None]]:
    """Name, versions and extra (or None) of what the installed jaxseq asks for; empty if it is not installed."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        match = REQUIREMENT.match(line)
        if match:
            extra = EXTRA.search(match[3] or "")
            found.append((match[1], match[2].replace(" ", ""), extra[1] if extra else None))
    return found


def version_of(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version lies in a range such as ``>=0.10,<0.13``; other comparisons count as satisfied."""
    own = numbers(version)
    for part in filter(None, wanted.split(",")):
        match = re.match(r"(>=|<=|==|<|>)([\d.]+)$", part)
        if match is None:
            continue
        bound = numbers(match[2])
        size = max(len(own), len(bound))
        left, right = (numbers + (0,) * (size - len(numbers)) for numbers in (own, bound))
        holds = {">=": left >= right, "<=": left <= right, "==": left == right, "<": left < right, ">": left > right}
        if not holds[match[1]]:
            return False
    return True


def numbers(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version: (0, 12, 0) for 0.12.0rc1."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
