"""The configs of an ablation: a base, variants with one other field, and a grid of fields."""

import csv
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseq import analysis, plotting, training
from jaxseq.pipelines.config_fields import configure, field_path
from jaxseq.pipelines.finished_runs import (
    IGNORED_FIELDS,
    RunsByVariant,
    base_label,
    field_differences,
    field_label,
    field_value,
    settings_label,
    variant_label,
)
from jaxseq.training.settings import resumable_fields


class Variant(NamedTuple):
    """A config of an ablation: its label, the name of its folder, and the texts that set its fields."""

    label: str
    folder: str
    settings: dict[str, str]


class Variants(NamedTuple):
    """The base, the others, and the dotted names of the fields of the grid."""

    base: Variant
    others: list[Variant]
    grid: list[str]


def make_variants(kind: type, base: Mapping[str, str], vary: Sequence[str], grid: Sequence[str]) -> Variants:
    """The base, a variant for each value of a field in ``vary``, and one for each combination of values in ``grid``.

    The name of a folder is made of the fields that differ from the base, so that another value or field leaves the
    folders of the other variants as they are, and a variant of ``vary`` is the same run as the cell of a grid.

    Args:
        kind: the dataclass of the configs.
        base: settings of the base, as ``configure`` reads them.
        vary: ``field=value,value,...``, one field at a time.
        grid: ``field=value,value,...``, all combinations.

    Raises:
        ValueError: a setting that ``configure`` refuses, a config that differs from the base in other fields than are
            named, a field twice in the grid, or nothing but the base.
    """
    first: Any = configure(kind, base)
    before = training.to_json(first)
    axes = [_split_values(word, "grid") for word in grid]
    fields = [field_path(first, field) for field, _ in axes]
    if repeated := next((field for field in fields if fields.count(field) > 1), ""):
        raise ValueError(f"grid {' '.join(grid)}: {repeated} is set twice")
    cells = [{field: value} for field, values in (_split_values(word, "vary") for word in vary) for value in values]
    names = [field for field, _ in axes]
    cells += [dict(zip(names, cell, strict=True)) for cell in itertools.product(*(v for _, v in axes)) if names]
    others, changed = dict[str, Variant](), list[str]()
    for cell in cells:
        variant: Any = configure(kind, {**base, **cell})
        after = training.to_json(variant)
        if after != before:
            told = " ".join(f"{field}={value}" for field, value in cell.items())
            differences = field_differences(before, after, IGNORED_FIELDS | resumable_fields(variant))
            label = variant_label(told, differences, after, fields)
            differing = [field for field in fields if field_label(field, after) != field_label(field, before)]
            changed += [line.partition(": ")[0] for line in differences]
            folder = "+".join(field_label(field, after) for field in sorted(differing)) if differing else label
            others[label] = Variant(label, safe_name(folder), {**base, **cell})
    if not others:
        told = " ".join([*(f"vary {word}" for word in vary), *(f"grid {word}" for word in grid)])
        raise ValueError(f"{told}: nothing but the base")
    label = base_label(fields, changed, before)
    return Variants(Variant(label, "base", dict(base)), [*others.values()], fields)


def split_setting(word: str, option: str, *taken: str) -> tuple[str, str]:
    """Split ``field=value`` into field and value; raises ValueError for another form and for the fields ``taken``."""
    field, equals, value = word.partition("=")
    if not (field and equals) or field in taken:
        raise ValueError(f"{option} takes field=value, not {word!r}; an ablation itself sets --run, --seeds, --smoke")
    return field, value


def _split_values(word: str, option: str) -> tuple[str, list[str]]:
    """The field and the values of ``field=value,value,...``."""
    field, text = split_setting(word, option, "run", "seed", "smoke")
    try:
        return field, next(csv.reader([text], strict=True)) or [""]
    except csv.Error as error:  # an open quotation, or a line end outside quotes
        raise ValueError(f"{option} {text!r}: {error}") from None


def safe_name(label: str) -> str:
    """A valid folder name; a hash distinguishes names in which characters were replaced."""
    name = re.sub(r"[^\w.=+-]", "_", label, flags=re.ASCII)[:80]
    return name if name == label else f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def grid_tables(
    groups: RunsByVariant, comparisons: Mapping[str, Mapping[str, analysis.Comparison]], grid: Sequence[str]
) -> dict[str, plotting.GridTable]:
    """The means of each metric over a grid of two fields, by the metric's name; a cell without a run is NaN.

    The base is in the table even if it is no cell of the grid; variants of other fields are not.
    """
    rows, columns = grid
    configs = {label: next(iter(group.values())).config for label, group in groups.items()}
    base, *_ = configs
    inside = [label for label, config in configs.items() if label in (base, settings_label(grid, config))]
    ticks = [tuple(_ticks(field, [configs[label] for label in inside])) for field in grid]

    def place(label: str) -> tuple[int, int]:
        row, column = (axis.index(_text(field, configs[label])) for field, axis in zip(grid, ticks, strict=True))
        return row, column

    tables = {}
    for metric, made in comparisons.items():
        means = np.full((len(ticks[0]), len(ticks[1])), np.nan)
        halves = means.copy()
        for label in inside:
            found = made[label].estimate
            means[place(label)] = found.mean
            halves[place(label)] = np.nan if found.high is None else found.high - found.mean
        tables[metric] = plotting.GridTable(rows, columns, ticks[0], ticks[1], means, halves, place(base))
    return tables


def _text(field: str, config: dict[str, Any]) -> str:
    return field_label(field, config).removeprefix(f"{field}=")


def _ticks(field: str, configs: Sequence[dict[str, Any]]) -> list[str]:
    """The texts of a field's values: numbers in their order, others as they come."""
    values = {_text(field, config): field_value(field, config) for config in configs}
    numbers = all(type(value) in (int, float) for value in values.values())
    return sorted(values, key=lambda text: values[text]) if numbers else [*values]


def grid_markdown(table: plotting.GridTable) -> str:
    """A markdown table of a grid: a row for each value of the first field; the base in bold."""

    def cell(row: int, column: int) -> str:
        text = table.text(row, column)
        return f"**{text}**" if (row, column) == table.base else text

    def escaped(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    heads = [escaped(f"{table.column_field}={value}") for value in table.columns]
    lines = [f"| | {' | '.join(heads)} |", "|:--" + "|--:" * len(heads) + "|"]
    for row, value in enumerate(table.rows):
        cells = " | ".join(cell(row, column) for column in range(len(heads)))
        lines.append(f"| {escaped(f'{table.row_field}={value}')} | {cells} |")
    return "\n".join([*lines, ""])
