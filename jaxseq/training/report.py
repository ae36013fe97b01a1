"""The report of a run: ``figures/*.png`` and ``report.html``, a single self-contained file. Pages of tables, too."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from jaxseq.files import JSON, write_atomic
from jaxseq.plotting.descriptions import read_png
from jaxseq.plotting.training_curves import draw_training_curves
from jaxseq.training.defaults import changed_settings
from jaxseq.training.metrics import read_json_lines
from jaxseq.training.run import Run
from jaxseq.training.settings import flatten

TEMPLATE, TABLES = "report.html.jinja", "tables.html.jinja"

WIDE = 1000
"""A figure of more pixels across is as wide as the page."""

IDENTITY = re.compile(r"(sha256|signature|fingerprint|digest)$")
"""The end of the name of a result that identifies something instead of measuring it."""


class PageTable(NamedTuple):
    """A table of a page: a title, the heads of the columns, rows of which the first cell is the head, and a note."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class _Figure(NamedTuple):
    """An image of a page; ``caption`` is shown below it, ``alt`` says what it shows."""

    name: str
    caption: str
    alt: str
    data: str
    wide: bool
    width: int


def write_report(
    run: Run,
    *,
    title: str | None = None,
    samples: Sequence[str] | Mapping[str, str] = (),
    figures: Mapping[str, Path] | None = None,
) -> Path:
    """Draw the figures and write ``report.html``; returns its path. All text is escaped.

    ``samples`` are shown verbatim, under their names if they are a mapping; ``figures`` are further PNG files by
    caption. The standard figures need matplotlib (extra `plots`); without it the report has a note in their place.
    """
    rows = read_json_lines(run.metrics)
    note = ""
    drawn: dict[str, Path] = {}
    try:
        drawn = draw_training_curves(rows, run.path / "figures", clip_norm=_find_number(run.config, "clip_norm"))
    except ImportError:
        note = "no figures: they need matplotlib (pip install 'jaxseq[plots]')"
        print(note, flush=True)
    environment = {name: value for name, value in run.environment.items() if name not in ("command", "earlier")}
    parameters = run.read("parameters.json") or []
    config = flatten(run.config) if run.config else {}
    changed = _changed_rows(run, config)
    numbers, texts, identities = _sorted_results(run.read("results.json") or {})
    page = _render(
        TEMPLATE,
        title=title or run.path.name,
        summary=_summary(rows, parameters, environment),
        command=run.environment.get("command", ""),
        numbers=numbers,
        texts=texts,
        identities=identities,
        figures=[_figure(name, file, "") for name, file in drawn.items()]
        + [_figure(caption, file, caption) for caption, file in dict(figures or {}).items()],
        note=note,
        samples=_named(samples),
        config=config,
        changed=changed,
        changes=f"{len(changed)} of {len(config)} settings differ from the experiment's defaults"
        + ("; they are marked" if changed else ""),
        environment=flatten(environment),
        parameters=parameters,
    )
    write_atomic(run.path / "report.html", page)
    return run.path / "report.html"


def write_tables(
    file: Path,
    title: str,
    tables: Sequence[PageTable],
    *,
    figures: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write a self-contained page of figures and tables; returns its path. All text is escaped.

    ``figures`` are PNG files by name, ``notes`` lines of text above them.
    """
    shown = [_figure(name, path, "") for name, path in (figures or {}).items()]
    write_atomic(file, _render(TABLES, title=title, tables=tables, figures=shown, notes=notes))
    return file


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


def _environment() -> jinja2.Environment:
    """Jinja's environment: every value is escaped, an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxseq", "training"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"value": _format_value, "breakable": _breakable}
    return environment


def _summary(rows: Sequence[Mapping[str, Any]], parameters: JSON, environment: Mapping[str, JSON]) -> str:
    last: Mapping[str, Any] = next((row for row in reversed(rows) if "loss" in row), {})
    parts = []
    if parameters:
        parts.append(f"{sum(row['size'] for row in parameters):,} parameters")
    if last:
        parts.append(f"{last['step']:,} steps, {last.get('tokens', 0):,} tokens")
    if last.get("train_seconds"):
        parts.append(f"{last['train_seconds'] / 60:.1f} minutes of training")
    parts.append(f"{environment.get('device_count', 1)} x {environment.get('backend', 'unknown device')}")
    parts.append(str(environment.get("started", ""))[:10])
    return " · ".join(part for part in parts if part)


def _figure(name: str, file: Path, caption: str) -> _Figure:
    """An image with the description in the file as its alternative text, or its name where there is none."""
    found = read_png(file)
    alt = f"{caption}. {found.description}" if caption and found.description else found.description or name
    data = base64.b64encode(Path(file).read_bytes()).decode()
    return _Figure(name, caption, alt, data, found.width > WIDE or found.height > found.width, found.width)


def _sorted_results(results: Mapping[str, JSON]) -> tuple[dict[str, JSON], dict[str, JSON], dict[str, JSON]]:
    """The numbers, other texts, and what identifies data or a method: hashes and signatures."""
    numbers, texts, identities = dict[str, JSON](), dict[str, JSON](), dict[str, JSON]()
    for name, value in results.items():
        if not isinstance(value, str) or value in ("nan", "inf", "-inf"):
            numbers[name] = value
        elif IDENTITY.search(name) or re.fullmatch("[0-9a-f]{32,}", value):
            identities[name] = value
        else:
            texts[name] = value
    return numbers, texts, identities


def _changed_rows(run: Run, config: Mapping[str, JSON]) -> dict[str, JSON]:
    """The defaults of the changed settings, by the names of their rows; the run folder is always another."""
    changed = changed_settings(run.provenance.config)
    rows = {}
    for row in config:
        parts = row.split(".")
        heads = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        if row != "run" and (found := next((head for head in heads if head in changed), None)):
            rows[row] = changed[found]
    return rows


def _named(samples: Sequence[str] | Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of a name, empty where there is none, and a text."""
    if isinstance(samples, str):
        samples = [samples]
    return list(samples.items()) if isinstance(samples, Mapping) else [("", text) for text in samples]


def _format_value(value: JSON) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return (value or "none") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _breakable(name: str) -> Markup:
    """A dotted name, escaped, that a browser may break after dots and underscores."""
    return escape(name).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>"))


def _find_number(config: JSON, name: str) -> float | None:
    """The first number under a name, at any depth of a config."""
    if isinstance(config, dict):
        if isinstance(config.get(name), int | float):
            return config[name]
        for value in config.values():
            if (found := _find_number(value, name)) is not None:
                return found
    return None
