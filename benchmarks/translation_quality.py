"""What the translators of ``experiments/translation.py`` reach: every figure of docs/translation.md, from three seeds.

    python benchmarks/translation_quality.py                        # all of it, more than an hour on 2 CPU cores
    python benchmarks/translation_quality.py --parts dates fusion   # some of it
    python benchmarks/translation_quality.py --table                # what was measured, in Markdown

Every run is ``python experiments/translation.py`` with options that stand below, in a folder of its own under
runs/translation; the same command again makes those that are not finished. Rows go to
benchmarks/results/translation-DEVICE.jsonl, one a run, figures to docs/figures. Parts can run side by side, which makes
training longer.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import RESULTS, device_name, environment

from jaxseq import analysis, plotting, training

ROOT = Path(__file__).resolve().parents[1]
RUNS, FIGURES = ROOT / "runs" / "translation", ROOT / "docs" / "figures"

SHORT = {"attention": ["--train.steps", "600"], "transformer": [], "rnn": []}
"""Tasks that attention learns in fewer steps than its default; rnn's default is 600."""
REVERSAL = ["task:reversal", "--max-string-length", "12", "--length-extrapolation", "2"]
LISTS = ["task:dates", "--dates-per-line", "2", "--length-extrapolation", "2"]
CASES: dict[str, dict[str, list[str]]] = {
    "dates": {
        "dates en-de, attention": ["model:attention"],
        "dates en-de, transformer": ["model:transformer"],
        "dates en-iso, attention": ["model:attention", "task:dates", "--target", "iso", "--train.steps", "1800"],
        "dates en-iso, transformer": ["model:transformer", "task:dates", "--target", "iso"],
    },
    "hard": {
        "names en-de, attention": ["task:names", "model:attention", "--dropout", "0.3", *SHORT["attention"]],
        "numbers to German words, attention": ["task:words", *SHORT["attention"]],
        "German words to numbers, attention": ["task:digits", "--language", "de", *SHORT["attention"]],
    },
    "bottleneck": {
        f"{name}, {model}": [*options, f"model:{model}", *SHORT[model]]
        for (name, options), model in itertools.product(
            {"reversal": REVERSAL, "lists of dates": LISTS}.items(), ("attention", "rnn")
        )
    },
}
FUSION = "task=words train.steps=300"
PARTS = (*CASES, "fusion")


@dataclass(frozen=True)
class Options:
    """The parts to run, and their seeds."""

    parts: tuple[Literal["dates", "hard", "bottleneck", "fusion"], ...] = ("dates", "hard", "bottleneck", "fusion")
    """Groups of cases to run."""
    seeds: int = 3
    """Number of seeds, from 0."""
    table: bool = False
    """Only print what was measured."""


def main(options: Options) -> None:
    """Run, note, draw, print."""
    file = RESULTS / f"translation-{device_name()}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for part in () if options.table else options.parts:
        new = fusions(options.seeds) if part == "fusion" else runs(part, options.seeds)
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        rows = [row for row in rows if row["part"] != part] + new
        rows.sort(key=lambda row: PARTS.index(row["part"]))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if part == "bottleneck":
            curves(options.seeds)
    print(table(rows))


def folder(case: str, seed: int) -> Path:
    """The run folder of a case and a seed."""
    return RUNS / "".join(letter if letter.isalnum() else "-" for letter in case) / f"seed{seed}"


def runs(part: str, seeds: int) -> list[dict[str, Any]]:
    """The results of every run of a part; seeds draw pairs, parameters and batches anew."""
    rows = []
    for seed, (case, options) in itertools.product(range(seeds), CASES[part].items()):
        run = folder(case, seed)
        if not (run / "results.json").exists():
            drawn = ["--seed", str(seed), "--split-seed", str(seed), "--samples", "4", "--run", str(run)]
            subprocess.run([sys.executable, "experiments/translation.py", *options, *drawn], cwd=ROOT, check=True)
        results = json.loads((run / "results.json").read_text())
        rows.append({"part": part, "case": case, "seed": seed, **results, **environment()})
    return rows


def fusions(seeds: int) -> list[dict[str, Any]]:
    """The ablation of how a context joins, by experiments/ablation.py: its table, as it stands."""
    run = RUNS / "fusion"
    command = [sys.executable, "experiments/ablation.py", "--experiment", "translation", "--base", *FUSION.split()]
    command += ["--vary", "fusion=concat,add,multiply", "--seeds", str(seeds), "--run", str(run)]
    command += ["--metric", "exact_match", "--metric", "chrf", "--metric", "parameters"]
    subprocess.run(command, cwd=ROOT, check=True)
    return [{"part": "fusion", "case": "fusion", "table": (run / "ablation.md").read_text(), **environment()}]


def curves(seeds: int) -> None:
    """Exact match against source length, the sentences of all seeds together."""
    for name, width in (("reversal", 2), ("lists of dates", 10)):
        scores, trained = {}, 0
        for model, label in (("attention", "attention"), ("rnn", "one vector")):
            rows: list[dict[str, str]] = []
            for seed in range(seeds):
                run = folder(f"{name}, {model}", seed)
                found = json.loads((run / "translations.json").read_text(encoding="utf-8"))
                judged = json.loads((run / "results.json").read_text())["held_out_pairs"]
                trained = max([trained, *(len(row["source"]) for row in found[:judged])])
                rows += found
            lengths = [len(row["source"]) for row in rows]
            edges = list(range(min(lengths) + width, max(lengths) + 1, width))
            texts = [row["found"] for row in rows], [row["target"] for row in rows]
            scores[label] = analysis.scores_by_length(lengths, *texts, edges=edges)
        picture = f"translation-{name.replace(' ', '-')}"
        file = FIGURES / f"{picture}.png"
        plotting.draw_length_curves(scores, file, trained_length=trained, unit="characters")
        kept = {label: [dataclasses.asdict(row) for row in part] for label, part in scores.items()}
        (RESULTS / f"{picture}-{device_name()}.json").write_text(json.dumps(kept) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Every case in Markdown: the values of the seeds."""
    columns = ["case", "options of translation.py", "exact match, %", "BLEU", "chrF"]
    columns += ["training, s", "parameters", "alignment, %"]
    head = f"| {' | '.join(columns)} |"
    lines, options = [head, "|---" * 8 + "|"], {case: words for part in CASES.values() for case, words in part.items()}
    for case in dict.fromkeys(row["case"] for row in rows if row["part"] != "fusion"):
        own = [row for row in rows if row["case"] == case]

        def each(name: str, form: str, scale: float = 1.0, own: list = own) -> str:
            return ", ".join(format(scale * row[name], form) for row in own if name in row)

        cells = [
            f"`{' '.join(options.get(case, []))}`",
            each("exact_match", ".1f", 100),
            each("bleu", ".1f"),
            each("chrf", ".1f"),
            each("train_seconds", ".0f"),
        ]
        cells += [f"{own[0]['parameters']:,}", each("alignment_accuracy", ".1f", 100)]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    copied: dict[str, list[str]] = {}
    for row in rows:
        if row.get("exact_match_of_copying"):
            copied.setdefault(row["case"], []).append(f"{row['exact_match_of_copying']:.1%}")
    lines += ["", *(f"copying the source, exact match: {', '.join(share)} ({case})" for case, share in copied.items())]
    lines += [
        "",
        *dict.fromkeys(row[name] for row in rows for name in ("bleu_signature", "chrf_signature") if name in row),
    ]
    return "\n".join(lines + [f"\n{row['table']}" for row in rows if row["part"] == "fusion"])


if __name__ == "__main__":
    training.run_cli(main, Options, __doc__, resumable=False)
