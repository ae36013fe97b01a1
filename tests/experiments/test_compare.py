"""Comparisons of run folders: what differs is named, what is missing is a dash, and what is no run is skipped."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.compare import Config, main
from jaxseq import training
from jaxseq.pipelines import run_comparison as comparison

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Small:
    size: int = 1


@dataclass(frozen=True)
class Large:
    size: int = 1
    depth: int = 2


@dataclass(frozen=True)
class Settings:
    run: Path = training.resumable_field(Path("run"))
    width: int = 4
    text: str = "data"
    part: Small | Large = Small()
    train: training.TrainConfig = training.TrainConfig(steps=30)


def write(folder: Path, config=None, *, command="", metrics=("loss",), results=True, steps=30, scale=1.0) -> Path:
    """A run folder with rows of metrics that fall from 3 to 1, and back to 2 at the end."""
    config = dataclasses.replace(config or Settings(), run=folder)
    with training.Run.open(folder, config, fingerprint="data") as run:
        environment = run.read("environment.json")
        run.write("environment.json", environment | {"command": command or "python experiments/small.py"})
        run.write("parameters.json", [{"name": "a", "shape": [2, 3], "dtype": "float32", "size": 6}])
        lines = training.JsonLinesWriter(run.metrics)
        for step in range(10, steps + 1, 10):
            value = scale * {10: 3.0, 20: 1.0}.get(step, 2.0)
            row = {"tokens": 8 * step, "tokens_per_second": 1000.0 if step == 10 else 4000.0, "learning_rate": 0.1}
            lines.write(step, row | dict.fromkeys(metrics, value))
        if results:
            run.write_results({"score": scale, "same": 1, "note": "text", "odd": float("nan")})
    return folder


def compare(*folders, **options):
    return main(Config(runs=tuple(folders), **options))


def test_runs_are_named_by_the_fields_that_differ_and_summarized(tmp_path, capsys):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", Settings(width=8), metrics=("loss", "evaluation/exact_match"))
    report = compare(a, b)
    assert report["fields"] == ["width"] and [run["label"] for run in report["runs"]] == ["width=4", "width=8"]
    first, second = report["runs"]
    assert first["metrics"]["loss"] == {"last": 2.0, "best": 1.0, "best_step": 20}
    assert second["metrics"]["evaluation/exact_match"] == {"last": 2.0, "best": 3.0, "best_step": 10}
    assert (first["parameters"], first["tokens_per_second"], first["steps"]) == (6, 4000.0, 30)
    said = capsys.readouterr().out
    assert "| run | width | state | steps | parameters | tokens/s |" in said
    assert f"| {a} | 4 | finished | 30 | 6 | 4,000 |" in said
    assert f"| {a} | 2 (1 at 20) | – |" in said and f"| {b} | 2 (1 at 20) | 2 (3 at 10) |" in said
    assert "score" not in said and "learning_rate" not in said and not [*tmp_path.glob("comparison*")]


def test_unfinished_runs_and_runs_without_metrics_have_dashes(tmp_path, capsys):
    begun, empty = write(tmp_path / "a", results=False, steps=10), write(tmp_path / "b", results=False, steps=0)
    done = write(tmp_path / "c", scale=2.0)
    report = compare(begun, empty, done)
    assert [run["state"] for run in report["runs"]] == ["step 10 of 30", "no step yet", "finished"]
    assert [run["finished"] for run in report["runs"]] == [False, False, True] and report["runs"][1]["metrics"] == {}
    assert [run["label"] for run in report["runs"]] == ["a", "b", "c"]  # no field differs
    said = capsys.readouterr().out
    assert f"| {empty} | no step yet | – | 6 | – |" in said and f"| {empty} | – |" in said
    assert f"| {done} | 2 |" in said  # the score of the one run that has results


def test_a_choice_among_dataclasses_is_one_field_and_its_fields_are_compared_within_the_choice(tmp_path):
    configs = [Settings(), Settings(part=Large()), Settings(part=Large(depth=3))]
    report = compare(*(write(tmp_path / f"{index}", config) for index, config in enumerate(configs)))
    assert report["fields"] == ["part", "part.depth"]
    labels = ["part=Small", "part=Large part.depth=2", "part=Large part.depth=3"]
    assert [run["label"] for run in report["runs"]] == labels


def test_runs_of_several_experiments_are_named_by_them(tmp_path):
    commands = ["python x/one.py --run a", "python x/two.py", "python x/ablation.py --experiment two --single", "'", ""]
    folders = [write(tmp_path / f"{index}", command=command) for index, command in enumerate(commands[:4])]
    report = compare(*folders)
    assert [run["experiment"] for run in report["runs"]] == ["one", "two", "two", "unknown"]
    assert report["fields"] == ["experiment"]
    labels = [run["label"] for run in report["runs"]]
    assert labels == ["experiment=one", "experiment=two (1)", "experiment=two (2)", "experiment=unknown"]


def test_what_is_no_run_is_named_and_skipped(tmp_path, capsys):
    run, other, file = write(tmp_path / "a"), tmp_path / "other", tmp_path / "notes.txt"
    other.mkdir()
    file.write_text("notes")
    changed = write(tmp_path / "changed")
    (changed / "config.json").write_text("{}")
    report = compare(run, other, file, tmp_path / "nowhere", changed, run)
    assert len(report["runs"]) == 1 and [*report["skipped"]] == [
        str(p) for p in (other, file, tmp_path / "nowhere", changed)
    ]
    said = capsys.readouterr().out
    for words in ("other is not a run folder", "notes.txt is a file", "nowhere is not a run folder: it does not exist"):
        assert words in said
    with pytest.raises(
        training.RunFolderError, match=r"no run folder to compare:\n  .*other is not .*\n  .*notes.txt is"
    ):
        compare(other, file)
    with pytest.raises(training.RunFolderError, match="run's own folder"):
        compare(run, out=run)
    with pytest.raises(ValueError, match="no run folders"):
        compare()


HOSTILE = "</pre><script>alert(1)</script> a|b\n\x1b[31m $x$ \u202e" + "long" * 100


def test_hostile_names_stay_texts_in_every_output(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    names = {"metrics": ("loss", f"evaluation/{HOSTILE}")}
    runs = (
        write(tmp_path / "a|b <i>", Settings(text=HOSTILE), **names),
        write(tmp_path / "b"),
        write(tmp_path / "c", command=f"python '{HOSTILE}'"),
    )
    compare(*runs, out=tmp_path / "out", title=HOSTILE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.html", "comparison.json", "comparison.md", "comparison.png",
    ]  # fmt: skip
    page, text = ((tmp_path / f"out/comparison.{kind}").read_text() for kind in ("html", "md"))
    assert "<script" not in page and "<i>" not in page and "&lt;script&gt;" in page
    assert "\x1b" not in text + capsys.readouterr().out and "\u202e" not in text
    tables = [line for line in text.split("\n") if line.startswith("|")]
    widths = [line.replace("\\|", "").count("|") for line in tables]
    assert len({*widths[:4]}) == 1 and "a\\|b <i>" in tables[2]
    report = json.loads((tmp_path / "out/comparison.json").read_text())
    assert report["runs"][0]["settings"]["text"] == HOSTILE


def test_the_best_value_is_the_one_that_the_name_of_the_metric_says():
    lower = ["loss", "evaluation/loss", "evaluation/bits_per_character", "evaluation/perplexity"]
    higher = [
        "evaluation/exact_match",
        "evaluation/bleu4",
        "evaluation/cider",
        "evaluation/ap50",
        "evaluation/accuracy",
    ]
    assert [comparison.best_is(name) for name in [*lower, *higher]] == ["lower"] * 4 + ["higher"] * 5
    assert [comparison.best_is(name) for name in ("evaluation/temperature", "evaluation/capacity", "")] == [""] * 3


def test_many_runs_are_drawn_with_styles_of_their_own_or_in_grey(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    from matplotlib.figure import Figure

    from jaxseq import plotting

    saved, write_figure = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: (saved.append(self), write_figure(self, *a, **o))[1])
    curves = {f"run {index}": plotting.RunCurve([1.0, 2.0], [float(index), float("nan")]) for index in range(30)}
    plotting.draw_run_curves([plotting.RunPanel("Loss", curves, "tokens seen", "nats")], tmp_path / "a.png")
    texts = [text.get_text() for text in saved[0].legends[0].get_texts()]
    assert texts == [f"run {index}" for index in range(27)] + ["3 more runs"]
    styles = {(line.get_color(), str(line.get_linestyle()), str(line._dash_pattern)) for line in saved[0].axes[0].lines}
    assert len(styles) == 28
    with pytest.raises(ValueError, match="1 x for 0 y"):
        panel = plotting.RunPanel("Loss", {"a": plotting.RunCurve([1.0], [])}, "x", "y")
        plotting.draw_run_curves([panel], tmp_path / "b.png")
    with pytest.raises(ValueError, match="no metric"):
        plotting.draw_run_curves([], tmp_path / "b.png")


@pytest.mark.full
def test_the_command_line_takes_folders_and_tells_errors_in_a_line(tmp_path):
    run = write(tmp_path / "a")
    line = [sys.executable, "-m", "jaxseq", "compare"]
    done = subprocess.run([*line, str(run), str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and f"| {run} | finished |" in done.stdout and "- skipped: " in done.stdout
    done = subprocess.run([*line, str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("error: no run folder to compare:")
