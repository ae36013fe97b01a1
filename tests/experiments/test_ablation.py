"""Ablations: one field at a time or not at all, runs that are made once, intervals that are what they say."""

import builtins
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import tyro

from experiments import ablation, language_model
from experiments.ablation import Config, main
from jaxseq import plotting, training
from jaxseq.models.configs import LanguageModelConfig
from jaxseq.pipelines.config_fields import configure

ROOT = Path(__file__).resolve().parents[2]
DRAW, DRAW_GRIDS = plotting.draw_comparisons, plotting.draw_grids

EXPERIMENT = '''
"""Results without a model: a known effect of each field, and noise that all configs of a seed have in common."""
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxseq import plotting, training
from jaxseq.models.configs import LanguageModelConfig
from jaxseq.pipelines.config_fields import configure
from jaxseq.training import resumable_field

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Train:
    steps: int = 10
    rate: float | None = 0.5

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"train steps must be at least 1, not {self.steps}")


@dataclass(frozen=True)
class Small:
    size: int = 1

@dataclass(frozen=True)
class Large:
    size: int = 9
    depth: int = 2


@dataclass(frozen=True)
class Config:
    run: Path = resumable_field(Path("runs/fake"))
    seed: int = 0
    width: int = 4
    coupled: int = 1
    hidden: int | None = None
    mode: Literal["plain", "broken", "slow", "infinite", "constant"] = "plain"
    names: tuple[str, ...] = ()
    sizes: tuple[int, int] = (1, 2)
    flag: bool = False
    text: str = "data"
    batch: int = 1
    samples: int = resumable_field(2)
    train: Train = Train()
    part: Small | Large = Small()
    smoke: bool = False

    def __post_init__(self):
        if self.hidden is None:
            object.__setattr__(self, "hidden", 4 * self.coupled)


def main(config):
    if config.smoke:
        config = dataclasses.replace(config, train=Train(steps=2))
    with open(HERE / "calls", "a") as calls:
        calls.write(f"{config.width} {config.mode} {config.seed}\\n")
    fingerprint = f"{config.text} {config.seed} {config.batch} {(HERE / 'data').read_text()}"
    with training.Run.open(config.run, config, fingerprint=fingerprint) as run:
        if config.mode == "broken" and config.seed == 1 and not (HERE / "mended").exists():
            raise ValueError("the disk is full")
        if config.mode == "slow":
            (HERE / "begun").touch()
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                raise training.Interrupted(0)
        noise = [0.3, -1.7, 2.4, 0.9][config.seed % 4]
        score = 10 * noise + config.width + 0.01 * noise * config.width
        results = {
            "score": float("inf") if config.mode == "infinite" else score,
            "width": config.width,
            "steps": config.train.steps,
            "text_sha256": f"{config.text} {(HERE / 'data').read_text()}",
            "note": "fine",
            "smoke": config.smoke,
        }
        run.write_results(results)
    return results
'''


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """An experiment's file; its runs are made in this process, and no figures."""

    def execute(arguments, log):
        log.write_text(" ".join(arguments))
        try:
            main(tyro.cli(Config, args=arguments))
        except (ValueError, OSError, training.TrainingError) as error:
            raise training.TrainingError(f"{error} (exit code 1; {log})") from None

    monkeypatch.setattr(ablation, "execute", execute)
    monkeypatch.setattr(plotting, "draw_comparisons", lambda *_, **options: options["title"])
    monkeypatch.setattr(plotting, "draw_grids", lambda *_, **options: options["title"])
    return write(tmp_path)


def write(folder: Path) -> Path:
    """The experiment and its data."""
    (folder / "data").write_text("1")
    (folder / "fake.py").write_text(EXPERIMENT)
    return folder / "fake.py"


def calls(fake: Path) -> list[str]:
    """The runs that were begun."""
    return (fake.parent / "calls").read_text().splitlines() if (fake.parent / "calls").exists() else []


def ablate(fake: Path, *vary: str, base: str = "", **options):
    """The report of an ablation in RUN/runs."""
    fixed = {"experiment": str(fake), "run": fake.parent / "runs", "base": (base,), "vary": vary}
    return main(Config(**(fixed | options)))


def by_label(report, metric="score"):
    """A metric of every variant."""
    return {variant["label"]: variant["metrics"][metric] for variant in report["variants"]}


def single(fake: Path, folder: str, base: str) -> Path:
    """A finished run folder."""
    run = fake.parent / folder
    main(Config(experiment=str(fake), base=(base,), run=run, single=True))
    return run


def test_every_variant_is_the_base_with_one_field_changed(fake):
    report = ablate(fake, "width=4,6", "train.steps=20", "names=a b,", base="rate=.25", seeds=2)
    configs = {v["label"]: v for v in report["variants"]}
    assert list(configs) == ["width=4 names= train.steps=10", "width=6", "train.steps=20", "names=a b"]
    assert [variant["base"] for variant in configs.values()] == [True, False, False, False]
    assert [(v["field"], v["value"]) for v in report["variants"][1:]] == [
        ("width", 6), ("train.steps", 20), ("names", ["a", "b"]),
    ]  # fmt: skip
    for variant in report["variants"]:
        assert list(variant["runs"]) == ["0", "1"]
        for seed, folder in variant["runs"].items():
            config = json.loads((Path(folder) / "config.json").read_text())
            assert config["seed"] == int(seed) and config["train"]["rate"] == 0.25
            changed = [name for name, value in config.items() if value != report["base"][name]]
            assert set(changed) - {"seed", "run"} == {(variant["field"] or "seed").partition(".")[0]} - {"seed"}
    assert {"ablation.json", "ablation.md", "base", "width=6"} <= {p.name for p in (fake.parent / "runs").iterdir()}


def test_two_fields_that_the_config_couples_are_refused_and_named(fake):
    with pytest.raises(ValueError, match=r"coupled=2.* 2 fields:\n  coupled: 1 -> 2\n  hidden: 4 -> 8$"):
        ablate(fake, "width=5", "coupled=2")
    assert not calls(fake) and not (fake.parent / "runs").exists()
    assert by_label(ablate(fake, "coupled=2", base="hidden=4", seeds=1))["coupled=2"]


@pytest.mark.parametrize(
    ("vary", "base", "words"),
    [
        (("widht=3",), "", ["widht", "width"]),
        (("train.step=3",), "", ["'train.step'", "train.steps"]),
        (("zzz=3",), "", ["zzz", "known", "width", "mode"]),
        (("width.x=3",), "", ["width.x"]),
        (("width=x",), "", ["width", "'x'", "int"]),
        (("width=1.5",), "", ["width", "1.5"]),
        (("width=3,x",), "", ["width", "'x'"]),
        (("flag=1",), "", ["flag", "1", "bool"]),
        (("mode=fancy",), "", ["mode", "fancy", "plain"]),
        (("sizes=1 2 3",), "", ["sizes", "1 2 3"]),
        (("part=huge",), "", ["part", "huge", "Small", "Large"]),
        (("part.depth=3",), "", ["part.depth", "part.size"]),
        (("part=large", "width=5"), "coupled=2 part=small part.size=x", ["part.size", "'x'", "int"]),
        (("train=3",), "", ["train", "3"]),
        (("train.steps=0",), "", ["train.steps=0", "at least 1"]),
        (("width",), "", ["field=value", "width"]),
        (("=3",), "", ["field=value", "=3"]),
        (("width=",), "", ["width=''", "int"]),
        (("width=3,,4",), "", ["width=''", "int"]),
        (('text="x,y',), "", ["vary", '"x,y']),
        (("text=a\rb",), "", ["vary", "'a\\rb'", "new-line"]),
        (("width=4",), "", ["width=4", "nothing but the base"]),
        (("samples=3",), "", ["samples=3", "no field that counts"]),
        (("seed=1",), "", ["seed", "--seeds"]),
        (("run=a",), "", ["run", "--run"]),
        (("smoke=True",), "", ["smoke", "--smoke"]),
        (("width=3",), "width=2 width=3", ["width", "twice", "2", "3"]),
        (("width=3",), "width=2 'x", ["width=2 'x", "quotation"]),
        (("width=3",), "train.steps=-1", ["train.steps=-1", "at least 1"]),
        (("width=3",), "train.rate=fast", ["train.rate", "fast", "float"]),
        (("width=3",), "seed=None", ["seed", "None"]),
    ],
)  # fmt: skip
def test_wrong_settings_are_named_and_nothing_is_run(vary, base, words, fake):
    with pytest.raises(ValueError) as error:
        ablate(fake, *vary, base=base)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not calls(fake) and not (fake.parent / "runs").exists()


@pytest.mark.full
def test_settings_of_any_characters_are_read_or_refused(fake):
    random = np.random.default_rng(0)
    experiment, letters = ablation.load(str(fake)), list("[],=.'\"\\ -+0123ex(){}\0\néNonetruwidthainmsz")
    names = ["width", "names", "sizes", "text", "train.rate", "hidden", "flag", "mode"]
    read = 0
    for _ in range(600):
        field, text = random.choice(names), "".join(random.choice(letters, random.integers(0, 8)))
        field = field if random.random() < 0.9 else "".join(random.choice(letters, 4))
        try:
            config = configure(experiment.Config, {field: text})
        except ValueError as error:
            assert field.partition(".")[0] in str(error) or repr(field) in str(error)
        else:
            read += training.from_json(experiment.Config, training.to_json(config)) == config
    assert read > 60


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [("text", "12", "12"), ("text", "None", "None"), ("text", "a,b", "a,b"), ("text", "a b", "a b"),
     ("text", "-x", "-x"),
     ("hidden", "None", None), ("flag", "True", True), ("train.rate", ".5", 0.5), ("train.rate", "1e-3", 1e-3),
     ("train.rate", "2", 2.0), ("train.rate", "1e3", 1000.0), ("names", "12 'a b'", ("12", "a b")),
     ("names", "a=1", ("a=1",)), ("names", "", ()), ("sizes", "3 4", (3, 4)), ("mode", "slow", "slow")],
)  # fmt: skip
def test_values_are_read_by_the_type_of_their_field(field, text, value, fake):
    settings = {"hidden": "1"} | {field: text}
    config = configure(ablation.load(str(fake)).Config, settings)
    for name in field.split("."):
        config = getattr(config, name)
    assert (config == value and type(config) is type(value)) or (field == "hidden" and config == 4)


def folders(fake: Path) -> list[str]:
    """The folders of the variants that were run."""
    return sorted(path.name for path in (fake.parent / "runs").iterdir() if path.is_dir())


def test_a_grid_is_all_combinations_over_seeds_and_an_extended_one_makes_the_missing_runs(fake, monkeypatch):
    grid = ("width=4,6", "train.steps=10,20")
    report = ablate(fake, grid=grid, seeds=2)
    assert [variant["label"] for variant in report["variants"]] == [
        "width=4 train.steps=10", "width=4 train.steps=20", "width=6 train.steps=10", "width=6 train.steps=20",
    ]  # fmt: skip
    assert [variant["settings"] for variant in report["variants"]][2] == {"train.steps": 10, "width": 6}
    assert folders(fake) == ["base", "train.steps=20", "train.steps=20+width=6", "width=6"]
    assert len(calls(fake)) == 8 and report["grid"] == ["width", "train.steps"]
    table = (fake.parent / "runs/ablation.md").read_text()
    assert "| | train.steps=10 | train.steps=20 |" in table and "| width=6 | " in table
    assert "| width=4 train.steps=10 (base) | 2 |" in table
    for more in (grid, ("train.steps=20,10", "width=6,4")):
        assert by_label(ablate(fake, grid=more, seeds=2)) and len(calls(fake)) == 8
    ablate(fake, grid=("width=4,6,8", "steps=10,20"), seeds=2)
    assert calls(fake)[8:] == ["8 plain 0"] * 2 + ["8 plain 1"] * 2
    report = ablate(fake, "width=6", "hidden=9", grid=(*grid, "flag=False,True"), seeds=1)
    assert len(calls(fake)) == 12 + 1 + 4  # the base and its variants are known
    assert [variant["label"] for variant in report["variants"]][:3] == [
        "width=4 train.steps=10 flag=False hidden=4", "width=6 train.steps=10 flag=False", "hidden=9",
    ]  # fmt: skip
    assert len(report["variants"]) == 9


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (("width=5,6", "coupled=1,2"), ["width=5 coupled=2", "hidden: 4 -> 8", "coupled: 1 -> 2"]),
        (("width=5", "width=6"), ["width", "twice"]),
        (("steps=5", "train.steps=6"), ["train.steps", "twice"]),
        (("widht=5",), ["widht", "width"]),
        (("width=4", "batch=1"), ["grid width=4 grid batch=1", "nothing but the base"]),
        (("width=5", "seed=1,2"), ["seed", "--seeds"]),
        (("width=5", "mode=fancy"), ["mode", "fancy"]),
        (("width=5", 'text="x'), ["grid", '"x']),
    ],
)
def test_wrong_grids_are_named_and_nothing_is_run(grid, words, fake):
    with pytest.raises(ValueError) as error:
        ablate(fake, grid=grid)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not calls(fake) and not (fake.parent / "runs").exists()


def test_a_dataclass_and_its_field_make_a_grid(fake):
    report = ablate(fake, grid=("part=small,large", "part.size=1,3"), seeds=1)
    assert [variant["label"] for variant in report["variants"]] == [
        "part=Small part.size=1", "part=Small part.size=3", "part=Large part.size=1", "part=Large part.size=3",
    ]  # fmt: skip
    assert folders(fake) == ["base", "part.size=3", "part=Large", "part=Large+part.size=3"]


def test_a_grid_of_which_the_base_is_no_cell_and_with_a_failed_run_is_drawn(fake, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    tables = {}
    monkeypatch.setattr(plotting, "draw_grids", lambda made, *_, **options: tables.update(made))
    with pytest.raises(training.TrainingError, match="mode=broken width=10 seed 1"):
        ablate(fake, grid=("mode=infinite,broken", "width=10,2"), seeds=2, metric=("score",))
    made = tables["score"]
    assert (made.rows, made.columns) == (("plain", "infinite", "broken"), ("2", "4", "10")) and made.base == (0, 1)
    assert np.isnan(made.means).sum() == 6 and made.text(2, 0) and not made.text(0, 0)
    file = DRAW_GRIDS(tables, fake.parent / "grid.png", title="$x$")
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="means are"):
        DRAW_GRIDS({"score": made._replace(rows=("a",))}, fake.parent / "no.png")


def test_a_finished_run_is_not_run_again(fake):
    first = ablate(fake, "width=6", seeds=2)
    assert len(calls(fake)) == 4
    assert ablate(fake, "width=6", seeds=2) == first
    assert len(calls(fake)) == 4
    (fake.parent / "runs/width=6/seed1/results.json").unlink()
    assert ablate(fake, "width=6", seeds=2) == first
    assert calls(fake)[4:] == ["6 plain 1"]
    ablate(fake, "width=6,7", base="samples=9", seeds=3)
    assert calls(fake)[5:] == ["7 plain 0", "7 plain 1", "4 plain 2", "6 plain 2", "7 plain 2"]
    with pytest.raises(
        training.ConfigMismatchError, match=r"base.seed0 was made with another config:\n  width: 4 -> 5"
    ):
        ablate(fake, "width=6", base="width=5", seeds=2)
    assert len(calls(fake)) == 10


def test_a_run_that_fails_is_told_and_loses_no_other(fake, capsys):
    with pytest.raises(training.TrainingError, match=r"mode=broken seed 1: the disk is full.*tries again"):
        ablate(fake, "mode=broken", "width=6", seeds=3)
    report = json.loads((fake.parent / "runs/ablation.json").read_text())
    assert list(report["failed"]) == ["mode=broken seed 1"]
    assert {label: entry["estimate"]["n"] for label, entry in by_label(report).items()} == {
        "width=4 mode=plain": 3, "mode=broken": 2, "width=6": 3,
    }  # fmt: skip
    assert "failed: mode=broken seed 1: the disk is full" in capsys.readouterr().out
    (fake.parent / "mended").touch()
    before = len(calls(fake))
    assert by_label(ablate(fake, "mode=broken", "width=6", seeds=3))["mode=broken"]["estimate"]["n"] == 3
    assert len(calls(fake)) == before + 1


def test_without_a_run_of_the_base_there_is_an_error_and_no_table(fake):
    with pytest.raises(training.TrainingError, match=r"no run of the base .*the disk is full"):
        ablate(fake, "mode=plain", base="mode=broken seed=1", seeds=1)
    assert not (fake.parent / "runs/ablation.json").exists()


def test_differences_are_paired_by_seed(fake):
    base, other = by_label(ablate(fake, "width=6", seeds=4)).values()
    peer = scipy.stats.ttest_rel([*other["values"].values()], [*base["values"].values()])
    expected = peer.confidence_interval(0.95)
    assert [other["difference"]["low"], other["difference"]["high"]] == pytest.approx([expected.low, expected.high])
    assert other["difference"]["excludes_zero"] is True and base["difference"] is None


def test_only_seeds_in_common_are_paired(fake):
    runs = [single(fake, f"{width}-{seed}", f"width={width} seed={seed}")
            for width, seed in [(4, 0), (4, 1), (6, 2), (6, 1), (8, 3)]]  # fmt: skip
    report = main(Config(experiment=str(fake), compare=tuple(runs)))
    found = by_label(report)
    assert list(found["width=6"]["differences"]) == ["1"] and found["width=6"]["difference"]["low"] is None
    assert found["width=8"]["difference"] is None
    assert any("width=8 has no seed in common" in note for note in report["notes"])


def test_one_seed_has_no_interval_and_the_table_says_so(fake):
    ablate(fake, "width=6", seeds=1)
    table = (fake.parent / "runs/ablation.md").read_text()
    assert "| width=4 (base) | 1 | 7.012 | none (one seed) |" in table
    assert re.search(r"\| width=6 \| 1 \| 9.018 \| none \(one seed\) \| \+2.006 \| none \(one seed\) \|  \|", table)


def test_what_is_not_finite_has_no_interval(fake):
    report = ablate(fake, "mode=infinite", seeds=2)
    assert by_label(report)["mode=infinite"]["difference"] == {
        "n": 2, "mean": "nan", "low": None, "high": None, "excludes_zero": None,
    }  # fmt: skip
    assert "none (not finite)" in (fake.parent / "runs/ablation.md").read_text()


def test_metrics_are_those_named_or_those_that_vary(fake):
    assert ablate(fake, "width=6", seeds=1)["shown"] == ["score", "width"]
    assert ablate(fake, "width=6", seeds=1, metric=("steps",))["shown"] == ["steps"]
    for name in ("scores", "note", "smoke"):
        with pytest.raises(ValueError, match=f"{name} is not a number .*known: score, width, steps"):
            ablate(fake, "width=6", seeds=1, metric=(name,))


def test_an_unknown_metric_is_refused_after_the_first_run(fake):
    with pytest.raises(ValueError, match="nowhere"):
        ablate(fake, "width=6", metric=("nowhere",))
    assert len(calls(fake)) == 1


def test_compare_gives_the_table_of_the_ablation(fake):
    report = ablate(fake, "width=6", "train.steps=20", seeds=3)
    runs = sorted((fake.parent / "runs").glob("*/seed*"))
    assert [run.parent.name for run in runs][:3] == ["base"] * 3
    again = main(Config(experiment=str(fake), compare=tuple(runs), run=fake.parent / "compared"))
    assert by_label(again) == by_label(report)
    assert (fake.parent / "compared/ablation.md").exists()


def test_compare_refuses_more_than_one_field(fake):
    runs = single(fake, "a", "width=4"), single(fake, "b", "width=5 train.steps=11 samples=7")
    with pytest.raises(ValueError, match=r"b differs .* 2 fields:\n  width: 4 -> 5\n  train.steps: 10 -> 11$"):
        main(Config(experiment=str(fake), compare=runs))


def test_compare_refuses_the_same_run_twice_and_what_is_no_finished_run(fake):
    run = single(fake, "a", "width=4")
    shutil.copytree(run, fake.parent / "copy")
    with pytest.raises(ValueError, match=r"a and .*copy are runs of the same config and seed"):
        main(Config(experiment=str(fake), compare=(run, fake.parent / "copy")))
    (fake.parent / "copy/results.json").unlink()
    for folder, words in (("copy", "has no results.json"), ("nowhere", "does not exist"), ("data", "is a file")):
        with pytest.raises(training.RunFolderError, match=words):
            main(Config(experiment=str(fake), compare=(run, fake.parent / folder)))
    with pytest.raises(training.RunFolderError, match="was made by another experiment"):
        main(Config(compare=(run,)))


def test_other_data_is_refused_unless_results_or_the_user_explain_it(fake):
    a, b, c = (single(fake, name, base) for name, base in [("a", ""), ("b", "batch=2"), ("c", "text=other")])
    report = main(Config(experiment=str(fake), compare=(a, b)))
    assert report["notes"] == ["batch=2: another data fingerprint than the base's, the same text_sha256"]
    with pytest.raises(ValueError, match=r"c ran on other data than .*a .*allow_other_data"):
        main(Config(experiment=str(fake), compare=(a, c)))
    report = main(Config(experiment=str(fake), compare=(a, c), allow_other_data=True))
    assert report["notes"] == ["text=other: another data fingerprint than the base's, as allowed"]


def test_data_that_changed_between_runs_is_noticed(fake):
    ablate(fake, "width=6", seeds=2)
    (fake.parent / "data").write_text("2")
    with pytest.raises(ValueError, match=r"width=7.seed0 ran on other data"):
        ablate(fake, "width=6,7", seeds=2)


def test_another_environment_is_noted(fake):
    runs = single(fake, "a", ""), single(fake, "b", "width=5")
    files = training.RunFiles(runs[1])
    files.write("environment.json", files.read("environment.json") | {"python": "3.99.0"})
    notes = main(Config(experiment=str(fake), compare=runs))["notes"]
    assert len(notes) == 1 and "python" in notes[0] and "3.99.0" in notes[0]


def test_folders_of_any_value_are_safe_and_apart(fake):
    report = ablate(
        fake, 'text=../../a,..\\..\\a,"a,b",a/b,a_b,$a$b$,a|b,12,' + "x" * 300, seeds=1, allow_other_data=True
    )
    folders = [Path(folder) for variant in report["variants"] for folder in variant["runs"].values()]
    assert len({*folders}) == len(folders) == 10
    assert all(folder.parent.parent == fake.parent / "runs" and folder.is_dir() for folder in folders)


def test_a_run_folder_is_no_folder_of_an_ablation(fake):
    single(fake, "runs", "")
    with pytest.raises(training.RunFolderError, match="another"):
        ablate(fake, "width=6")


def test_smoke_reaches_the_experiment_and_what_that_sets_itself_cannot_be_varied(fake):
    report = ablate(fake, "width=6", seeds=1, smoke=True)
    assert report["base"]["smoke"] is True
    with pytest.raises(ValueError, match="are runs of the same config and seed"):
        ablate(fake, "train.steps=6,7", seeds=1, smoke=True)
    assert len(calls(fake)) == 3


@pytest.mark.parametrize("name", ["nowhere", "nowhere.py", "generate"])
def test_what_is_no_experiment_is_said(name, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"nowhere.*known: captioning, complexity, detection, gradient_flow, language_model, scaled_dot, "
        r"translation, truncation, or FILE|"
        r"generate is not an experiment .*'run'",
    ):
        main(Config(experiment=name, vary=("core=gru",), run=tmp_path / "run"))


def test_an_experiment_that_does_not_import_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def main(:")
    with pytest.raises(ValueError, match=r"broken\.py.*SyntaxError"):
        main(Config(experiment=str(tmp_path / "broken.py"), vary=("core=gru",)))


@pytest.mark.parametrize(
    "options",
    [{}, {"vary": ("a=1",), "seeds": 0}, {"compare": (Path("a"),), "vary": ("a=1",)}, {"single": True},
     {"single": True, "run": Path("a"), "vary": ("a=1",)}],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options):
    with pytest.raises(ValueError):
        Config(**options)


def test_a_figure_is_drawn(fake, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    monkeypatch.setattr(plotting, "draw_comparisons", DRAW)
    ablate(fake, "width=6", "mode=infinite", "text=" + "long/" * 30, seeds=3, allow_other_data=True)
    assert (fake.parent / "runs/ablation.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_table_is_there_and_the_reason_said(fake, monkeypatch, capsys):
    ordinary = builtins.__import__

    def refusing(name, *rest, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return ordinary(name, *rest, **options)

    monkeypatch.setattr(plotting, "draw_comparisons", DRAW)
    monkeypatch.setattr(builtins, "__import__", refusing)
    ablate(fake, "width=6", seeds=1)
    assert "no figure: figures need matplotlib: pip install" in capsys.readouterr().out
    assert (fake.parent / "runs/ablation.md").exists() and not (fake.parent / "runs/ablation.png").exists()


def command(fake: Path, *options: str) -> list[str]:
    """A command line."""
    file = str(ROOT / "experiments/ablation.py")
    return [sys.executable, file, "--experiment", str(fake), "--run", str(fake.parent / "runs"), *options]


@pytest.mark.full
def test_the_command_line_runs_processes_and_tells_failures(fake):
    ablate(fake, "width=6", base="text='a b' seed=1", seeds=1)
    line = command(fake, "--base", "text='a b' seed=1", "--vary", "width=6", "--vary", "mode=broken", "--seeds", "1")
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=fake.parent)
    assert done.returncode == 1
    assert done.stderr.startswith("error: failed: mode=broken seed 1: the disk is full (exit code 1;"), done.stderr
    assert "| width=4 (base) | 1 |" in done.stdout and "| width=6 | 1 |" in done.stdout
    folder = fake.parent / "runs/mode=broken/seed1"
    assert "--single" in json.loads((folder / "environment.json").read_text())["command"]
    assert json.loads((folder / "config.json").read_text())["text"] == "a b"
    assert calls(fake) == ["4 plain 1", "6 plain 1", "4 broken 1"]


@pytest.mark.full
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        signal.SIGTERM,
    ],
)
def test_a_stopped_ablation_stops_its_run_and_says_how_to_go_on(number, tmp_path):
    fake = write(tmp_path)
    child = subprocess.Popen(command(fake, "--vary", "mode=slow", "--base", "mode=slow", "--vary", "width=6"),
                             stderr=subprocess.PIPE, text=True)  # fmt: skip
    until = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < until:
        time.sleep(0.05)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == training.EXIT_INTERRUPTED and "the same command resumes" in said
    assert len(calls(fake)) == 1
    log = (tmp_path / "runs/base/log-seed0.txt").read_text()
    assert "Traceback" not in log


def test_a_choice_among_dataclasses_is_one_field_and_so_are_its_fields(fake):
    report = ablate(fake, "part=large", "size=3", seeds=1)
    assert [(v["label"], v["field"], v["value"]) for v in report["variants"][1:]] == [
        ("part=Large", "part", "Large"), ("part.size=3", "part.size", 3),
    ]  # fmt: skip
    report = ablate(fake, "depth=3", base="part=large", seeds=1, run=fake.parent / "deep")
    assert report["base"]["part"] == {"kind": "Large", "size": 9, "depth": 2}
    assert report["variants"][1]["label"] == "part.depth=3"
    with pytest.raises(ValueError, match=r"2 fields:\n  part: 'Small' -> 'Large'\n  width: 4 -> 5"):
        runs = single(fake, "small", ""), single(fake, "large", "part=large width=5")
        main(Config(experiment=str(fake), compare=runs))


def test_configs_of_the_experiments_are_set_by_texts():
    settings = {"core": "elman", "train.steps": "7", "samples": "0", "core_options": "num_heads=2 residuals=chunks"}
    config = configure(language_model.Config, settings)
    assert config.train == dataclasses.replace(language_model.Config().train, steps=7)
    assert config.model == LanguageModelConfig(core="elman", core_options=("num_heads=2", "residuals=chunks"))
    translation = ablation.load("translation")
    config = configure(translation.Config, {"model": "transformer", "features": "32", "task": "files --pairs a.tsv"})
    assert config.model == translation.TransformerTranslator(features=32)
    assert (config.train.steps, config.optimizer.learning_rate) == (1400, 4e-3)
    assert config.task == translation.Files(Path("a.tsv"))
    with pytest.raises(ValueError, match=r"'fusion'"):
        configure(translation.Config, {"model": "transformer", "fusion": "add"})


@pytest.mark.full
def test_runs_of_the_language_model_are_compared(language_model_run, tmp_path):
    run, twin = language_model_run[0].run, tmp_path / "b"
    shutil.copytree(run, twin)
    shutil.rmtree(twin / "checkpoints")  # which store the config
    files = training.RunFiles(twin)
    config = files.read("config.json")
    files.write("config.json", config | {"model": config["model"] | {"tied": True}, "samples": 9})
    report = main(Config(compare=(run, twin), metric=("bits_per_character",)))
    assert [*by_label(report, "bits_per_character")["model.tied=True"]["differences"].values()] == [0.0]


def test_a_mesh_is_a_setting_of_every_run() -> None:
    config = Config(mesh="data=-1", vary=("dropout=0.2",), smoke=True)
    made = ablation.variants_of(config, language_model.Config)
    assert [made.base.settings["mesh"], *(one.settings["mesh"] for one in made.others)] == ["data=-1", "data=-1"]
