"""Scale-out, computed and checked on host devices: equality with one device, bytes a device, collectives of a step.

    python benchmarks/scale_out.py                       # all parts, most of an hour on 2 CPU cores
    python benchmarks/scale_out.py --parts equality      # parameters after 20 steps on 1, 2, 4 and 8 devices
    python benchmarks/scale_out.py --parts bytes         # parameters and optimizer, a device
    python benchmarks/scale_out.py --parts collectives   # what a step exchanges on 8, 64 and 512 devices

Each case runs in a process of its own with that number of host devices. The part ``collectives`` compiles the training
step for abstract arrays and runs nothing: it reads the bytes that each device sends from the compiled program, compares
them with the formula of the strategy, and estimates times for stated speeds. Collectives of less than 1 kB are left
out. Rows are written to
``benchmarks/results/scale_out-cpu.jsonl``; the tables of docs/scale-out.md are printed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import RESULTS, Row, parse_arguments

PARTS = ("equality", "bytes", "collectives")
OUTPUT = RESULTS / "scale_out-cpu.jsonl"
WORKER = Path(__file__).with_name("scale_out_cases.py")

EQUALITY_MODELS = ("lstm", "rglru", "gla", "attention", "hybrid")
BYTES_MESHES = ("data=8", "fsdp=8", "tensor=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2", "sequence=8")
STRATEGIES = {
    "attention": ("data={k}", "fsdp={k}", "data={k/8},fsdp=8", "data={k/8},tensor=8", "data={k/8},sequence=8"),
    "rglru": ("data={k}", "data={k/8},sequence=8"),
    "lstm": ("data={k}", "fsdp={k}"),
}
COLLECTIVE_DEVICES = (8, 64, 512)


def cases(parts: tuple[str, ...]) -> list[tuple[int, list[str]]]:
    """The number of devices and the arguments of the worker, for each case."""
    found: list[tuple[int, list[str]]] = []
    if "equality" in parts:
        found += [(8, ["equality", model, precision]) for model in EQUALITY_MODELS for precision in ("32", "64")]
    if "bytes" in parts:
        found += [(8, ["bytes", mesh]) for mesh in BYTES_MESHES]
    if "collectives" in parts:
        for model, strategies in STRATEGIES.items():
            for k in COLLECTIVE_DEVICES:
                meshes = [text.replace("{k/8}", str(k // 8)).replace("{k}", str(k)) for text in strategies]
                found += [(k, ["collectives", model, mesh]) for mesh in meshes]
    return found


def run(devices: int, arguments: list[str]) -> list[Row]:
    """The rows of one case; a row with its error if it fails."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(WORKER), *arguments], env=environment, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        rows.append({"part": arguments[0], "case": arguments[1:], "error": reason})
    return rows


def table(title: str, columns: dict[str, Callable[[Row], Any]], rows: list[Row]) -> None:
    """Prints a table in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("| " + " | ".join(str(cell(row)) for cell in columns.values()) + " |")


def tables(rows: list[Row]) -> None:
    """The tables of docs/scale-out.md."""
    good = [row for row in rows if "error" not in row]
    equality = [row for row in good if row["part"] == "equality"]
    if equality:
        columns: dict[str, Callable[[Row], Any]] = {
            "model": lambda r: r["model"],
            "mesh": lambda r: r["mesh"],
            "precision": lambda r: f"float{r['precision']}",
            "SGD": lambda r: f"{r['sgd']:.1e}",
            "AdamW": lambda r: f"{r['adamw']:.1e}" if "adamw" in r else "",
        }
        table("Largest relative difference of a parameter after 20 steps", columns, equality)
    held = [row for row in good if row["part"] == "bytes"]
    if held:
        columns = {
            "mesh": lambda r: r["mesh"],
            "parameters, MB a device": lambda r: f"{r['parameters'] / 1e6:.1f}",
            "optimizer, MB a device": lambda r: f"{r['optimizer'] / 1e6:.1f}",
            "share": lambda r: f"{r['share']:.3f}",
        }
        table("Bytes a device", columns, held)
    exchanged = [row for row in good if row["part"] == "collectives"]
    if exchanged:
        columns = {
            "model": lambda r: r["model"],
            "devices": lambda r: r["devices"],
            "mesh": lambda r: r["mesh"],
            "MB sent a device": lambda r: f"{r['sent'] / 1e6:,.1f}",
            "formula": lambda r: f"{r['formula'] / 1e6:,.1f}",
            "in loops": lambda r: f"{r['sent_in_loops'] / 1e6:,.1f}",
            "compute, ms": lambda r: f"{1e3 * r['compute_s']:.1f}",
            "exchange, ms": lambda r: f"{1e3 * r['exchange_s']:.1f}",
            "efficiency": lambda r: f"{r['efficiency']:.0%}",
        }
        table("A training step, estimated", columns, exchanged)
    for row in rows:
        if "error" in row:
            print("FAILED", json.dumps(row))


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: %(default)s)")
    parser.add_argument("--tables", action="store_true", help="print the tables of the stored rows; run nothing")
    options = parse_arguments(parser)
    stored = [json.loads(line) for line in OUTPUT.read_text().splitlines()] if OUTPUT.exists() else []
    if options.tables:
        tables(stored)
        return
    rows: list[Row] = []
    for devices, arguments in cases(tuple(options.parts)):
        found = run(devices, arguments)
        rows += found
        print(
            f"{' '.join(arguments)}: {'failed: ' + found[-1]['error'] if 'error' in found[-1] else 'done'}", flush=True
        )
    kept = [row for row in stored if row["part"] not in options.parts]
    OUTPUT.write_text("".join(json.dumps(row) + "\n" for row in kept + rows))
    tables(rows)


if __name__ == "__main__":
    main()
