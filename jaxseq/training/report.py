"""The report of a run: ``figures/*.png`` and ``report.html``, a single self-contained file."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from jaxseq.files import JSON, write_atomic
from jaxseq.plotting.training_curves import draw_training_curves
from jaxseq.training.metrics import read_json_lines
from jaxseq.training.run import Run
from jaxseq.training.settings import flatten

TEMPLATE = "report.html.jinja"


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
    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            title=title or run.path.name,
            summary=_summary(rows, parameters, environment),
            command=run.environment.get("command", ""),
            results=run.read("results.json") or {},
            figures={caption: _base64(file) for caption, file in (drawn | dict(figures or {})).items()},
            note=note,
            samples=_named(samples),
            tables={"Config": flatten(run.config) if run.config else {}, "Environment": flatten(environment)},
            parameters=parameters,
        )
    )
    write_atomic(run.path / "report.html", page)
    return run.path / "report.html"


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


def _base64(file: Path) -> str:
    return base64.b64encode(Path(file).read_bytes()).decode()


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
