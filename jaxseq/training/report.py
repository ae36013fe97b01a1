"""The report of a run: ``figures/*.png`` and ``report.html``, one file that needs nothing else."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseq.training.figures import draw_figures
from jaxseq.training.files import write_atomic
from jaxseq.training.metrics import read_json_lines
from jaxseq.training.run import Run
from jaxseq.training.settings import flatten

STYLE = """
:root { color-scheme: light;
  --ink: #20242a; --soft: #667080; --line: #e3e6ea; --wash: #f7f8f9; --blue: #2b5c8f; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25;
  margin: 0 0 .25rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.75rem 0 .75rem;
  padding-bottom: .35rem; border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1.25rem 0 .4rem; color: var(--soft); font-weight: 600; }
.soft { color: var(--soft); margin: 0; }
pre, code, td.value {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .84rem; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px;
  padding: .9rem 1rem; margin: 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; min-width: 0; }
.card b { display: block;
  font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; color: var(--blue);
  overflow-wrap: anywhere; }
.card span { color: var(--soft); font-size: .84rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure:first-child { grid-column: 1 / -1; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; vertical-align: top;
  padding: .32rem .75rem .32rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.name { color: var(--soft); width: 40%; overflow-wrap: break-word; }
td.value { overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; padding-right: 0; }
@media print { main { padding: 0; } }
"""


def write_report(
    run: Run,
    *,
    title: str | None = None,
    samples: Sequence[str] | Mapping[str, str] = (),
    figures: Mapping[str, Path] | None = None,
) -> Path:
    """Draw the figures and write ``report.html``; returns its path.

    ``samples`` are shown as they are, under their names if they have names; ``figures`` are further PNGs by
    caption. The standard figures need matplotlib (extra `plots`); without it the report says so and has
    none.
    """
    rows = read_json_lines(run.metrics)
    note = ""
    drawn: dict[str, Path] = {}
    try:
        drawn = draw_figures(rows, run.path / "figures", clip_norm=_find(run.config, "clip_norm"))
    except ImportError:
        note = "no figures: they need matplotlib (pip install 'jaxseq[plots]')"
        print(note, flush=True)
    page = _page(run, title or run.path.name, rows, samples, drawn | dict(figures or {}), note)
    write_atomic(run.path / "report.html", page)
    return run.path / "report.html"


def _page(
    run: Run,
    title: str,
    rows: list[dict[str, Any]],
    samples: Sequence[str] | Mapping[str, str],
    figures: Mapping[str, Path],
    note: str,
) -> str:
    environment = {k: v for k, v in run.environment.items() if k not in ("command", "earlier")}
    last: dict[str, Any] = next((row for row in reversed(rows) if "loss" in row), {})
    parameters = run.read("parameters.json") or []
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="soft">{_text(_summary(last, parameters, environment))}</p>',
        _section("Command", f"<pre>{_text(run.environment.get('command', ''))}</pre>"),
        _section("Results", _cards(run.read("results.json") or {})),
        _section("Training", _figures(figures) + (f'<p class="soft">{_text(note)}</p>' if note else "")),
        _section("Samples", _samples(samples)),
        _section("Config", _table(flatten(run.config) if run.config else {})),
        _section("Environment", _table(flatten(environment))),
        _section("Parameters", _parameters(parameters)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _summary(last: dict[str, Any], parameters: list[dict[str, Any]], environment: dict[str, Any]) -> str:
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


def _section(title: str, content: str) -> str:
    return f"<h2>{_text(title)}</h2>\n{content}" if content else ""


def _cards(results: dict[str, Any]) -> str:
    cards = [
        f'<div class="card"><b>{_text(_number(value))}</b><span>{_text(name.replace("_", " "))}</span></div>'
        for name, value in results.items()
    ]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _figures(figures: Mapping[str, Path]) -> str:
    images = []
    for caption, file in figures.items():
        data = base64.b64encode(Path(file).read_bytes()).decode()
        images.append(f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}"></figure>')
    return f'<div class="figures">{"".join(images)}</div>' if images else ""


def _samples(samples: Sequence[str] | Mapping[str, str]) -> str:
    if isinstance(samples, str):
        samples = [samples]
    named = isinstance(samples, Mapping)
    pairs = samples.items() if isinstance(samples, Mapping) else enumerate(samples)
    return "\n".join(
        (f"<h3>{_text(name)}</h3>" if named else "<h3></h3>") + f"<pre>{_text(text)}</pre>" for name, text in pairs
    )


def _table(rows: Mapping[str, Any]) -> str:
    cells = [
        f'<tr><td class="name">{_name(name)}</td><td class="value">{_text(_number(value))}</td></tr>'
        for name, value in rows.items()
    ]
    return f"<table>{''.join(cells)}</table>" if cells else ""


def _parameters(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    cells = []
    for row in rows:
        shape = " × ".join(map(str, row["shape"])) or "scalar"
        texts = "".join(f'<td class="value">{_text(text)}</td>' for text in (row["name"], shape, row["dtype"]))
        cells.append(f'<tr>{texts}<td class="number">{row["size"]:,}</td></tr>')
    total = sum(row["size"] for row in rows)
    head = '<tr><th>name</th><th>shape</th><th>dtype</th><th class="number">count</th></tr>'
    foot = f'<tr><th>total</th><th></th><th></th><th class="number">{total:,}</th></tr>'
    return f"<table>{head}{''.join(cells)}{foot}</table>"


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return (value or "none") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _name(dotted: str) -> str:
    """A dotted name that a narrow page breaks at its joints."""
    return _text(dotted).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _find(config: Any, name: str) -> Any:
    """The first value under a name, at any depth of a config."""
    if isinstance(config, dict):
        if isinstance(config.get(name), int | float):
            return config[name]
        for value in config.values():
            if (found := _find(value, name)) is not None:
                return found
    return None
