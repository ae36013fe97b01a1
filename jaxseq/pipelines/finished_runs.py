"""Read finished runs of one experiment and compare them with the first, the base.

A run differs from the base in one field of the config, or in several fields of a grid.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jaxseq import analysis, training
from jaxseq.training.settings import config_differences, flatten, resumable_fields

IGNORED_FIELDS = {"run", "seed"}
"""Fields in which runs of one variant may differ, besides resumable fields."""

MACHINE_FIELDS = ("git", "python", "versions", "backend", "devices", "device_count", "x64", "xla_flags")
"""Fields of environment.json whose differences are noted."""


class FinishedRun(NamedTuple):
    """The files of a finished run; ``ignored`` are the fields of its config that are not compared."""

    folder: Path
    ignored: set[str]
    config: dict[str, Any]
    environment: dict[str, Any]
    results: dict[str, Any]


RunsByVariant: TypeAlias = dict[str, dict[int, FinishedRun]]
"""Runs by label and seed, the base first."""


def read_finished_run(folder: Path, kind: type) -> FinishedRun:
    """Read a finished run of the experiment whose config is a ``kind``.

    Raises:
        RunFolderError: not a run folder, not a finished run, one of another experiment, or changed files.
    """
    saved = training.read_run(folder)
    config: object = saved.config_as(kind)
    saved.verify_config(config)
    ignored = IGNORED_FIELDS | resumable_fields(config)
    environment, results = (saved.read_object(name) for name in ("environment.json", "results.json"))
    return FinishedRun(folder, ignored, training.to_json(config), environment, results)


def field_differences(old: dict[str, Any], new: dict[str, Any], ignored: set[str]) -> list[str]:
    """One line for each field that differs; of a field that is another dataclass, its name alone."""
    lines = config_differences(old, new, ignored)
    kinds = [line.partition(".kind: ")[0] for line in lines if ".kind: " in line]
    within = tuple(f"{name}." for name in kinds)
    chosen = [line.replace(".kind: ", ": ") for line in lines if line.partition(".kind: ")[0] in kinds]
    return chosen + [line for line in lines if not line.startswith(within)]


def one_field(label: str, differences: Sequence[str]) -> str:
    """The name of the field that differs.

    Raises:
        ValueError: there is none, or there are several.
    """
    if len(differences) == 1:
        return differences[0].partition(": ")[0]
    told = f"{len(differences)} fields:\n  " + "\n  ".join(differences) if differences else "no field that counts"
    raise ValueError(f"{label} differs from the base in {told}")


def field_label(field: str, config: dict[str, Any]) -> str:
    """``field=value`` as ``configure`` would read it; of a dataclass, the name of its class."""
    value = field_value(field, config)
    return f"{field}={shlex.join(map(str, value)) if isinstance(value, list) else value}"


def field_value(field: str, config: dict[str, Any]) -> Any:
    """The value of a dotted field; of a dataclass, the name of its class; None where there is no such field."""
    value: Any = config
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value.get("kind") if isinstance(value, dict) else value


def settings_label(fields: Iterable[str], config: dict[str, Any]) -> str:
    """``field=value`` for each of the fields, separated by spaces."""
    return " ".join(field_label(field, config) for field in fields)


def base_label(grid: Sequence[str], differing: Iterable[str], config: dict[str, Any]) -> str:
    """The base's values of the fields of the grid, and of other fields that differ in the order of the config."""
    others = [*dict.fromkeys(name for name in differing if name not in grid)]
    known = [*flatten(config)]
    places = {
        name: next((i for i, path in enumerate(known) if f"{path}.".startswith(f"{name}.")), 0) for name in others
    }
    return settings_label([*grid, *sorted(others, key=lambda name: (places[name], name))], config) or "base"


def variant_label(told: str, differences: Sequence[str], config: dict[str, Any], grid: Sequence[str] = ()) -> str:
    """The label of a config that differs from the base: its field, or all fields of the grid that it belongs to.

    Args:
        told: what to call the config in an error.
        differences: its ``field_differences`` to the base.
        config: the config as JSON.
        grid: the dotted names of the fields that may differ together.

    Raises:
        ValueError: it differs in several fields that are not all of the grid, or in none.
    """
    names = [line.partition(": ")[0] for line in differences]
    if names and {*names} <= {*grid}:
        return settings_label(grid, config)
    return field_label(one_field(told, differences), config)


def group_by_variant(
    runs: Sequence[FinishedRun], allow_other_data: bool = False, grid: Sequence[str] = ()
) -> tuple[RunsByVariant, list[str]]:
    """Group runs by label and seed; the first run's config is the base. Also returns notes for the reader.

    The base is labelled by its values of all fields that differ between the runs (``features=64 dropout=0.1``), a
    variant by ``variant_label``.

    Args:
        runs: finished runs of one experiment.
        allow_other_data: also compare runs on other data than the base's.
        grid: the dotted names of the fields that may differ together.

    Raises:
        ValueError: a run on other data than the base's or with other fields than ``variant_label`` takes, or one run
            twice.
    """
    groups: RunsByVariant = {}
    ignored = set[str]().union(*(run.ignored for run in runs))
    differences = [field_differences(runs[0].config, run.config, ignored) for run in runs]
    fields = [line.partition(": ")[0] for lines in differences for line in lines]
    base = base_label(grid, fields, runs[0].config)
    for run, lines in zip(runs, differences, strict=True):
        label = variant_label(str(run.folder), lines, run.config, grid) if lines else base
        twin = groups.setdefault(label, {}).setdefault(run.config["seed"], run)
        if twin is not run:
            raise ValueError(f"{twin.folder} and {run.folder} are runs of the same config and seed ({label})")
    notes = []
    for label, group in groups.items():
        pairs = [(groups[base][seed], run) for seed, run in group.items() if seed in groups[base]]
        if not pairs:
            notes.append(f"{label} has no seed in common with the base: no differences, and data not compared")
        notes += [f"{label}: {note}" for pair in pairs if (note := _data_note(*pair, allow_other_data))]
    rows = [flatten({name: run.environment.get(name) for name in MACHINE_FIELDS}) for run in runs]
    for name in rows[0]:
        if len(kinds := dict.fromkeys(json.dumps(row.get(name)) for row in rows)) > 1:
            notes.append(f"not all runs had the same {name}: {', '.join(kinds)}")
    return groups, [*dict.fromkeys(notes)]


def _data_note(base: FinishedRun, other: FinishedRun, allowed: bool) -> str:
    """A note on different data, empty if it is the same; raises ValueError unless the results or the user allow it."""
    one, two = (str(run.environment.get("data_fingerprint")) for run in (base, other))
    named = [key for key in base.results if key.endswith("sha256")]
    # The fingerprint also covers how the data is cut into batches.
    known = bool(named) and all(base.results[key] == other.results.get(key) for key in named)
    if one == two:
        return ""
    if known or allowed:
        return f"another data fingerprint than the base's, {f'the same {named[0]}' if known else 'as allowed'}"
    told = f"{other.folder} ran on other data than {base.folder} (fingerprints {two[:12]} and {one[:12]})"
    raise ValueError(f"{told}; allow_other_data compares them where the data is what the field changes")


def compare_runs(
    groups: RunsByVariant, metrics: Sequence[str] = ()
) -> tuple[dict[str, dict[str, analysis.Comparison]], list[str]]:
    """Comparisons of all variants by metric, and the metrics to show.

    These are ``metrics``, or the first four numbers of the results that are not the same in all runs.

    Raises:
        ValueError: a metric that is not a number in the results of every run.
    """
    rows = {label: {seed: _numbers(run.results) for seed, run in group.items()} for label, group in groups.items()}
    comparisons = analysis.compare_metrics(rows)
    for name in metrics or [*comparisons][:1] or ["a metric"]:
        if name not in comparisons:
            known = ", ".join(comparisons) or "none"
            raise ValueError(f"{name} is not a number in the results of every run; known: {known}")
    spread = {name: {v for one in made.values() for v in one.values.values()} for name, made in comparisons.items()}
    return comparisons, list(metrics) or [name for name in spread if len(spread[name]) > 1][:4] or [*comparisons][:1]


def mark_base(comparisons: dict[str, analysis.Comparison]) -> dict[str, analysis.Comparison]:
    """The comparisons with ``(base)`` behind the label of the first."""
    return {label if row else f"{label} (base)": made for row, (label, made) in enumerate(comparisons.items())}


def _numbers(results: dict[str, Any]) -> dict[str, float]:
    """The numbers of results.json, including values that are not finite, which are stored as strings."""
    return {k: float(v) for k, v in results.items() if type(v) in (int, float) or v in ("nan", "inf", "-inf")}
