r"""Change one field of an experiment's config at a time, or a grid of fields, over several seeds, and compare.

    python experiments/ablation.py --base "core=gru features=64 train.steps=100 samples=0" \
        --vary features=128 --vary dropout=0.0,0.3 --seeds 3 --metric bits_per_character --run runs/ablation
    python experiments/ablation.py --experiment translation --base "steps=600 learning_rate=3e-3" \
        --vary model=rnn,transformer --vary fusion=add --run runs/models
    python experiments/ablation.py --base "core=gru features=32 learning_rate=1e-2 train.steps=100 samples=0" \
        --grid features=32,64 --grid optimizer.learning_rate=1e-3,1e-2 --seeds 2 --run runs/grid
    python experiments/ablation.py --compare runs/a0 runs/a1 runs/b0 runs/b1 --metric bits_per_character

Every variant of --vary is the base with one field set to another value; --grid makes all combinations of its fields'
values. Choosing another dataclass for a field, such as model, counts as one change. Every run is a separate process.
The runs are executed one after another, each in RUN/FIELD=VALUE/seedK with a log next to it; repeating the command
executes the runs that are not finished, and so does one with more values, fields or seeds. A comparison is refused if
the config of a run differs in more than one field, outside the grid, or if the data differs. For each metric the table
shows the mean over seeds and the mean difference from the base, paired by seed, with 95 % Student-t intervals; of a
grid of two fields, there are a table and a heat map of the means, too. Written to RUN: ablation.md, ablation.json,
ablation.png, ablation-grid.png.

The first command without dropout=0.3 took 93 s on 2 CPU cores (9 runs; Python 3.11's corpus): the base reached 3.190
[2.915, 3.464] bits per character; 128 features differed from it by -0.334 [-0.450, -0.219], although the intervals of
the two means overlap, and dropout 0.0 by 0.005 [-0.057, 0.067].
"""

import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tyro

from jaxseq import analysis, plotting, training
from jaxseq.files import write_atomic, write_json
from jaxseq.pipelines.ablation_variants import Variants, grid_markdown, grid_tables, make_variants, split_setting
from jaxseq.pipelines.config_fields import configure
from jaxseq.pipelines.finished_runs import (
    FinishedRun,
    RunsByVariant,
    compare_runs,
    field_differences,
    field_value,
    group_by_variant,
    mark_base,
    read_finished_run,
)
from jaxseq.training.settings import resumable_fields

HERE, FOLDER = Path(__file__).resolve().parent, Path("runs/ablation")
EXPERIMENT = re.compile(r"^class Config\b.*^    run: Path = .*^    seed: int = .*^def main\(", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Config:
    """The experiment, the fields to vary, and the seeds."""

    experiment: str = "language_model"
    """An experiment's name, or a FILE.py with main(config) and a dataclass Config whose fields have defaults."""
    base: tuple[str, ...] = ()
    """The base's settings: field=value, train.steps=500, core_options='num_heads=2 peepholes=True'."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """field=value,value,...: each value makes a variant; a value with commas stands in double quotes."""
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """field=value,value,... of one field of a grid; given for each field, all combinations of the values are made."""
    seeds: int = 3
    """Number of seeds, counting up from the base's seed."""
    metric: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Entries of results.json to compare; by default the first few numbers that differ between runs."""
    run: Path | None = None
    """Folder of all outputs; by default runs/ablation, or none with --compare."""
    compare: tuple[Path, ...] = ()
    """Compare these finished run folders instead of executing runs; the first one is the base."""
    allow_other_data: bool = False
    """Also compare runs with different data."""
    smoke: bool = False
    """Run every variant with the experiment's --smoke."""
    mesh: str | None = None
    """The devices of every run, for experiments that take --mesh: data=-1 or data=2,fsdp=4. Runs on different
    meshes may be compared."""
    single: bool = False
    """Execute only the base, in this process and in the folder --run; an ablation starts each run this way."""

    def __post_init__(self) -> None:
        training.check_numbers(self)
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, not {self.seeds}")
        lone = (self.compare and (self.base or self.smoke or self.mesh)) or (self.single and self.run is None)
        if lone or bool(self.compare) + bool(self.vary or self.grid) + self.single != 1:
            told = (
                "give vary or grid (field=value,value), or compare (finished run folders) without base, smoke and mesh"
            )
            raise ValueError(f"{told}; single, which an ablation starts, needs run")


def main(config: Config) -> dict[str, Any]:
    """Execute the missing runs, compare all runs and write the results; returns the contents of ablation.json.

    Raises:
        ValueError: invalid settings, or compared runs that differ in more than one field or in their data.
        TrainingError: a folder belongs to another run, or runs failed (raised after all results are written).
    """
    experiment, folder, failed = load(config.experiment), config.run or FOLDER, dict[str, str]()
    if config.single:
        experiment.main(configure(experiment.Config, base_settings(config), run=folder))
        return {}
    runs, grid = [read_finished_run(path, experiment.Config) for path in config.compare], list[str]()
    if not runs:
        variants = variants_of(config, experiment.Config)
        runs, grid = make_runs(config, experiment.Config, variants, folder, failed), variants.grid
    groups, notes = group_by_variant(runs, config.allow_other_data, grid)
    comparisons, shown = compare_runs(groups, config.metric)
    grids = grid_tables(groups, {m: comparisons[m] for m in shown}, grid) if len(grid) == 2 else {}
    title, told = f"Ablation of {Path(config.experiment).stem}", [f"failed: {n}: {e}" for n, e in failed.items()]
    tables = [f"## {metric}\n\n{analysis.comparison_table(mark_base(comparisons[metric]))}" for metric in shown]
    tables += [f"## {metric}: mean over seeds\n\n{grid_markdown(table)}" for metric, table in grids.items()]
    text = "\n".join([f"# {title}\n", *tables, analysis.INTERVAL_METHOD, *(f"- {note}" for note in notes + told), ""])
    print("\n" + text, flush=True)
    rows = variant_rows(groups, comparisons)
    report: dict[str, Any] = {"experiment": config.experiment, "base": runs[0].config, "shown": shown, "notes": notes}
    report |= {"failed": failed, "method": analysis.INTERVAL_METHOD, "grid": grid, "variants": rows}
    report = training.to_json(report, "ablation")
    if config.run or not config.compare:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "ablation.json", report)
        write_atomic(folder / "ablation.md", text)
        try:
            drawn = {metric: mark_base(comparisons[metric]) for metric in shown}
            plotting.draw_comparisons(drawn, folder / "ablation.png", title=title)
            if grids:
                plotting.draw_grids(grids, folder / "ablation-grid.png", title=title)
        except ImportError as error:
            print(f"no figure: {error}")
    if failed:
        raise training.TrainingError("; ".join([*told, "the same command tries again"]))
    return report


def load(name: str) -> Any:
    """Import the module of an experiment."""
    file = Path(name) if name.endswith(".py") else HERE / f"{name.replace('-', '_')}.py"
    if not file.is_file():
        known = sorted(f.stem for f in HERE.glob("*.py") if EXPERIMENT.search(f.read_text(encoding="utf-8")))
        raise ValueError(f"unknown experiment {name!r}; known: {', '.join(known)}, or FILE.py")
    spec = importlib.util.spec_from_file_location(f"experiment_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        types = {field.name: field.type for field in dataclasses.fields(module.Config())}
        if "run" not in types or types.get("seed") not in (int, "int") or not callable(module.main):
            raise TypeError(f"its fields are {', '.join(types)}; its seed is of type {types.get('seed')}")
    except Exception as error:
        needs = "main(config), and a dataclass Config with defaults for all, run and seed: int among them"
        raise ValueError(f"{name} is not an experiment ({needs}): {type(error).__name__}: {error}") from error
    return module


def base_settings(config: Config) -> dict[str, str]:
    """The settings of --base, --smoke and --mesh, by field."""
    settings, text = {"smoke": "True"} if config.smoke else {}, " ".join(config.base)
    settings |= {} if config.mesh is None else {"mesh": config.mesh}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"base {text!r}: {error}") from None
    for field, value in (split_setting(word, "base", "run") for word in words):
        if settings.setdefault(field, value) != value:
            raise ValueError(f"base sets {field} twice: {settings[field]} and {value}")
    return settings


def variants_of(config: Config, kind: type) -> Variants:
    """The base and its variants; raises ValueError for settings that make none."""
    return make_variants(kind, base_settings(config), config.vary, config.grid)


def make_runs(
    config: Config, kind: type, variants: Variants, folder: Path, failed: dict[str, str]
) -> list[FinishedRun]:
    """Execute the runs; returns the finished ones, the base first, and adds failed ones to ``failed``."""
    if (folder / "config.json").exists():
        raise training.RunFolderError(f"{folder} is a run's own folder; an ablation needs another")
    first: Any = configure(kind, variants.base.settings)
    finished, todo = dict[tuple[int, int], FinishedRun](), []
    for seed in range(first.seed, first.seed + config.seeds):  # all variants of a seed, then the next seed
        for index, (label, name, settings) in enumerate([variants.base, *variants.others]):
            path, settings = folder / name / f"seed{seed}", settings | {"seed": str(seed)}
            made: Any = configure(kind, settings, run=path)
            asked, earlier = training.to_json(made), training.read_json(path.with_name(f"asked-{path.name}.json"))
            if earlier:  # as this version writes it
                earlier = training.to_json(training.from_json(kind, earlier))
            changes = field_differences(earlier or asked, asked, {"run"} | resumable_fields(made))
            if changes:
                raise training.ConfigMismatchError(f"{path} was made with another config:\n  " + "\n  ".join(changes))
            if earlier and (path / "results.json").exists():
                finished[index, seed] = read_finished_run(path, kind)
            else:
                todo.append(((index, seed), f"{label} seed {seed}", path, settings, asked))
    print(f"{len(finished) + len(todo)} runs in {folder}; finished: {len(finished)}", flush=True)
    for number, (key, name, path, settings, asked) in enumerate(todo, 1):
        log, begun = path.with_name(f"log-{path.name}.txt"), time.perf_counter()
        print(f"[{number}/{len(todo)}] {name}; log: {log}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path.with_name(f"asked-{path.name}.json"), asked)
        base = [shlex.quote(f"{field}={value}") for field, value in settings.items()]
        try:
            execute(["--experiment", config.experiment, "--base", *base, "--run", str(path), "--single"], log)
            finished[key] = read_finished_run(path, kind)
        except training.TrainingError as error:
            failed[name] = str(error)
        print(f"  {failed.get(name, 'finished')}, {time.perf_counter() - begun:.1f} s", flush=True)
        runs = [finished[key] for key in sorted(finished)]
        if finished and min(finished)[0] == 0:  # stop at the first run that cannot be compared
            compare_runs(group_by_variant(runs, config.allow_other_data, variants.grid)[0], config.metric)
    if not finished or min(finished)[0] != 0:
        told = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise training.TrainingError(f"no run of the base is finished: {told}")
    return [finished[key] for key in sorted(finished)]


def execute(arguments: list[str], log: Path) -> None:
    """Run this program in a separate process; raises TrainingError with its last message if it fails."""
    with open(log, "ab") as stream:
        begun = stream.tell()
        child = subprocess.Popen([sys.executable, __file__, *arguments], stdout=stream, stderr=subprocess.STDOUT)
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()  # give the run time to save
            raise
    if code == training.EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        lines = log.read_bytes()[begun:].decode(errors="replace").split("\n")
        said = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
        raise training.TrainingError(f"{(said or ['it'])[-1].removeprefix('error: ')} (exit code {code}; {log})")


def variant_rows(groups: RunsByVariant, comparisons: dict[str, dict[str, analysis.Comparison]]) -> list[dict[str, Any]]:
    """The variants for ablation.json: the settings that vary, metrics, run folders; one is the base.

    ``field`` and ``value`` are those of a variant with a single other field, None for the base and in a grid.
    """
    first = [next(iter(group.values())) for group in groups.values()]
    ignored = set[str]().union(*(run.ignored for run in first))
    differences = [field_differences(first[0].config, run.config, ignored) for run in first]
    names = [[line.partition(": ")[0] for line in lines] for lines in differences]
    fields, rows = dict.fromkeys(name for row in names for name in row), []
    for (label, group), run, changed in zip(groups.items(), first, names, strict=True):
        field = changed[0] if len(changed) == 1 else None
        row = {"label": label, "base": run is first[0], "field": field}
        row |= {"value": field_value(field, run.config) if field else None}
        row |= {"settings": {name: field_value(name, run.config) for name in fields}}
        row |= {"metrics": {metric: dataclasses.asdict(made[label]) for metric, made in comparisons.items()}}
        rows.append(row | {"runs": {seed: run.folder for seed, run in group.items()}})
    return rows


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__, repeatable=("vary", "grid", "metric"))
