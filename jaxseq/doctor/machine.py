"""Checks of the machine: how JAX starts, devices that it does not use, cores, memory, variables, disk, malloc, text."""

import glob
import locale
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxseq.doctor.check import Finding
from jaxseq.doctor.packages import version_of
from jaxseq.malloc import set_malloc_options

START = "import sys; sys.path.append({folder!r}); import jaxseq, jax; print(*jax.devices())"
START_TIMEOUT_S = 120
LOW_DISK = 2 * 2**30
NO_DISK = 100 * 2**20
LOW_MEMORY = 2**30
VARIABLE = re.compile(r"(JAX|JAXSEQ|XLA|TF_CPP|LIBTPU|CUDA|OMP|MALLOC)_|GLIBC_TUNABLES$|PYTHON(WARNINGS|UTF8|PATH)$")
SLOW = {
    "JAX_DISABLE_JIT": "every operation is compiled and run alone",
    "JAX_DEBUG_NANS": "every result is copied to the host and looked at",
    "JAX_DEBUG_INFS": "every result is copied to the host and looked at",
    "JAX_LOG_COMPILES": "every compilation is printed",
    "JAX_CHECK_TRACER_LEAKS": "traces are not cached",
}


def check_start() -> Iterator[Finding]:
    """Import jaxseq and JAX and list the devices in another process: XLA may end it, as at a flag it does not know."""
    folder = str(Path(__file__).resolve().parents[2])
    try:
        done = subprocess.run(
            [sys.executable, "-c", START.format(folder=folder)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        advice = "a driver or another process holds the device: try JAX_PLATFORMS=cpu, then look at the driver"
        yield Finding("fail", "start", f"JAX has not started after {START_TIMEOUT_S} s", advice)
        return
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        what = f"importing jax and listing its devices failed with code {done.returncode}"
        found = f"{what}, so that no check that needs it follows: {lines[-1]}"
        yield Finding("fail", "start", found, start_advice(done.stderr))
    else:
        yield Finding("ok", "start", "JAX starts and lists its devices in a new process")


def start_advice(said: str) -> str:
    """What to do about an error at the start of JAX."""
    if "Unknown flag" in said or "XLA_FLAGS" in said:
        return f"this jaxlib does not know a flag of XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}: remove it"
    missing = re.search(r"No module named '([\w.]+)'", said)
    if missing:
        return f"pip install '{'jax>=0.10,<0.13' if missing[1].startswith('jax') else missing[1].split('.')[0]}'"
    if platforms := os.environ.get("JAX_PLATFORMS", ""):
        return f"JAX_PLATFORMS={platforms} names a platform that JAX may not have: unset it, or install its plugin"
    return "python -c 'import jax' shows the whole error; pip install --force-reinstall jax jaxlib often helps"


def check_devices() -> Iterator[Finding]:
    """The devices that JAX uses, and accelerators of this machine that it does not use."""
    import jax

    devices = jax.local_devices()
    kinds = sorted({f"{d.platform}{f' ({d.device_kind})' * (d.device_kind != d.platform)}" for d in devices})
    found = f"{len(devices)} x {', '.join(kinds)}"
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices if device.platform != "cpu"]
    if limits and limits[0]:
        found += f", {limits[0] / 2**30:.1f} GiB for JAX on each"
    if devices[0].platform != "cpu":
        yield Finding("ok", "devices", found)
        return
    seen, advice = unused_accelerator()
    if seen:
        yield Finding("warn", "devices", f"{found}; not used: {seen}", advice)
    else:
        yield Finding("ok", "devices", f"{found}; no accelerator found")


def unused_accelerator() -> tuple[str, str]:
    """An accelerator of this machine while JAX has the CPU alone, and what to do; two empty texts if there is none."""
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if seen := nvidia_devices():
        return seen, nvidia_advice(chosen)
    if glob.glob("/dev/kfd") and glob.glob("/dev/dri/renderD*"):
        return "an AMD GPU (/dev/kfd)", "see https://docs.jax.dev/en/latest/installation.html for JAX on ROCm"
    if glob.glob("/dev/accel[0-9]*"):
        return "a TPU (/dev/accel*)", "pip install 'jax[tpu]'"
    return "", ""


def nvidia_devices() -> str:
    """NVIDIA devices of this machine, in words; empty if there are none."""
    if tool := shutil.which("nvidia-smi"):
        try:
            asked = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
            done = subprocess.run(asked, capture_output=True, text=True, timeout=20, errors="replace")
            if done.returncode == 0 and (rows := [row for row in done.stdout.splitlines() if row.strip()]):
                return f"{len(rows)} NVIDIA GPU ({rows[0].replace(', ', ', driver ')})"
        except (OSError, subprocess.SubprocessError):
            pass
    nodes = glob.glob("/dev/nvidia[0-9]*") or glob.glob("/proc/driver/nvidia/gpus/*")
    return f"{len(nodes)} NVIDIA GPU ({nodes[0]})" if nodes else ""


def nvidia_advice(chosen: str) -> str:
    """Why JAX may not use an NVIDIA GPU, and what to do."""
    if chosen and not {"cuda", "gpu"} & set(chosen.split(",")):
        return f"JAX_PLATFORMS={chosen} keeps JAX from it: unset it"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides it: unset it"
    if any(version_of(f"jax-cuda{version}-plugin") for version in (12, 13)):
        return "the plugin is installed and does not start: JAX_PLATFORMS=cuda python -c 'import jax; jax.devices()'"
    return "pip install 'jaxseq[cuda]' (CUDA 13, driver 580 or newer; with an older driver: pip install 'jax[cuda12]')"


def check_cores() -> Iterator[Finding]:
    """The cores and the memory that this process may use: affinity and limits of its control group."""
    total = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    limit = cpu_limit()
    found = f"{allowed} of {total} cores" + (f", limited to the time of {limit:g}" if limit else "")
    if limit and limit < allowed:
        cores = max(1, int(limit))
        advice = f"XLA starts {allowed} threads for {limit:g} cores: start with taskset -c 0-{cores - 1}"
        yield Finding("warn", "cores", found, advice)
    else:
        yield Finding("ok", "cores", found)
    free = free_memory()
    if free is not None:
        found = f"{free / 2**30:.1f} GiB free for this process"
        if free < LOW_MEMORY:
            yield Finding("warn", "memory", found, "close other programs, or lower batch_size, length and features")
        else:
            yield Finding("ok", "memory", found)


def control_groups(root: str = "/sys/fs/cgroup") -> list[str]:
    """The folders of the control group of this process and of those above it (cgroup v2), the highest last."""
    match = re.search(r"^0::(/.*)$", _read("/proc/self/cgroup"), re.MULTILINE)
    names = [name for name in (match[1] if match else "/").split("/") if name not in ("", "..")]
    return ["/".join([root, *names[:count]]) for count in range(len(names), -1, -1)]


def cpu_limit(root: str = "/sys/fs/cgroup") -> float | None:
    """The cores whose time the control groups grant, or None without a limit (cgroup v2 and v1)."""
    texts = [_read(f"{folder}/cpu.max") for folder in control_groups(root)]
    texts.append(" ".join(_read(f"{root}/cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period")))
    found = [re.fullmatch(r"(\d+) (\d+)", text.strip()) for text in texts]  # "max" and -1: no limit
    return min((int(m[1]) / int(m[2]) for m in found if m and int(m[1]) and int(m[2])), default=None)


def free_memory(root: str = "/sys/fs/cgroup") -> int | None:
    """Bytes that this process may still use: what the system has available, at most the rest of the control groups.

    The cache of files, which the kernel gives back, does not count as used.
    """
    match = re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"))
    free = [int(match[1]) * 1024] if match else []
    places = [(folder, "memory.max", "memory.current") for folder in control_groups(root)]
    places.append((f"{root}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
    for folder, *names in places:
        limit, used = (_read(f"{folder}/{name}").strip() for name in names)
        if limit.isdecimal() and used.isdecimal():
            cached = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(f"{folder}/memory.stat"), re.MULTILINE)
            free.append(max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0)))
    return min(free, default=None)


def check_variables() -> Iterator[Finding]:
    """Environment variables that change what JAX does."""
    found = {name: value for name, value in sorted(os.environ.items()) if VARIABLE.match(name)}
    listed = " ".join(f"{name}={value!r}" for name, value in found.items()) or "none that changes what JAX does"
    slow = [name for name in SLOW if found.get(name, "0").lower() not in ("", "0", "false", "off", "no")]
    if slow:
        yield Finding("warn", "variables", listed, f"{slow[0]}: {SLOW[slow[0]]}, which is slow; unset it to train")
    else:
        yield Finding("ok", "variables", listed)


def check_disk(folders: Sequence[tuple[str, Path]]) -> Iterator[Finding]:
    """Free disk of the named folders, one finding for each file system."""
    seen: dict[int, list[str]] = {}
    places: dict[int, Path] = {}
    for name, asked in folders:
        folder = asked
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        device = folder.stat().st_dev
        seen.setdefault(device, []).append(f"{name} ({asked})")
        places.setdefault(device, folder)
    for device, names in seen.items():
        free = shutil.disk_usage(places[device]).free
        found = f"{free / 2**30:.1f} GiB free for {', '.join(names)}"
        if free < NO_DISK:
            yield Finding("fail", "disk", found, "free some disk: a checkpoint does not fit")
        elif free < LOW_DISK:
            yield Finding("warn", "disk", found, "free some disk, or choose a --run folder elsewhere")
        else:
            yield Finding("ok", "disk", found)


def check_folders() -> Iterator[Finding]:
    """Free disk of the working folder, the compilation cache and temporary files."""
    names = ("JAXSEQ_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR")
    cache = next(filter(None, map(os.environ.get, names)), str(Path.home() / ".cache" / "jaxseq" / "xla"))
    temporary = Path(tempfile.gettempdir())
    yield from check_disk(
        [("the working folder", Path.cwd()), ("the cache", Path(cache)), ("temporary files", temporary)]
    )


def check_malloc() -> Iterator[Finding]:
    """Whether freed memory is kept for the next step (``jaxseq.malloc``)."""
    if set_malloc_options():
        yield Finding("ok", "malloc", "freed memory is kept and used again")
        return
    names = [name for name in os.environ if name.startswith("MALLOC_") or name in ("JAXSEQ_MALLOC", "GLIBC_TUNABLES")]
    if names:
        advice = "unset them, unless they are faster: a training step on a CPU may take 1.4 times as long"
        yield Finding("warn", "malloc", f"left alone because of {', '.join(sorted(names))}", advice)
    else:
        yield Finding("ok", "malloc", "not applicable: the C library is not glibc")


def check_text() -> Iterator[Finding]:
    """The encoding of files, of file names and of the output, and the terminal."""
    names = {
        "files": locale.getpreferredencoding(False),
        "names": sys.getfilesystemencoding(),
        "output": getattr(sys.stdout, "encoding", None) or "none",
    }
    others = {what: name for what, name in names.items() if name.lower().replace("-", "") != "utf8"}
    columns, lines = shutil.get_terminal_size()
    terminal = f"a terminal of {columns} x {lines}" if sys.stdout.isatty() else "no terminal"
    found = ", ".join(f"{what} {name}" for what, name in names.items())
    if others:
        yield Finding("warn", "text", f"{found}; {terminal}", "export PYTHONUTF8=1 LC_ALL=C.UTF-8")
    else:
        yield Finding("ok", "text", f"{found}; {terminal}")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
