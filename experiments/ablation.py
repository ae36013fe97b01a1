r"""Change one field at a time of an experiment's config, over several seeds, and compare with intervals.

    python experiments/ablation.py --base "core=gru features=64 train.steps=100 samples=0" \
        --vary features=128 --vary dropout=0.0,0.3 --seeds 3 --metric bits_per_character --run runs/ablation
    python experiments/ablation.py --compare runs/a0 runs/a1 runs/b0 runs/b1 --metric bits_per_character

Every variant is the base with one field set to another value (no grid). Every run is a process of its own, one after
another, in RUN/FIELD=VALUE/seedK with a log beside it; the same command again makes those that are not finished. A
comparison in which more than one field of the configs differs, as the runs wrote them, is refused, and so is one of
other data. Of each metric there is the mean over seeds and the mean difference to the base, paired by seed, with 95 %
Student-t intervals; on stdout and, in RUN, as ablation.md, ablation.json and ablation.png.

The first command without dropout=0.3 took 93 s on 2 CPU cores (9 runs; Python 3.11's corpus): the base reached 3.190
[2.915, 3.464] bits per character; 128 features differed from it by -0.334 [-0.450, -0.219], although the intervals of
the two means overlap, and dropout 0.0 by 0.005 [-0.057, 0.067].
"""

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_type_hints

import tyro

from jaxseq import analysis, training
from jaxseq.analysis.comparison import METHOD
from jaxseq.training.files import write_atomic, write_json
from jaxseq.training.settings import config_differences, flatten, resumable_fields

HERE, FOLDER = Path(__file__).resolve().parent, Path("runs/ablation")
IGNORED = {"run", "seed"}  # and the fields declared free
MACHINE = ("git", "python", "versions", "backend", "devices", "device_count", "x64", "xla_flags")
EXPERIMENT = re.compile(r"^class Config\b.*^    seed: int = .*^def main\(", re.MULTILINE | re.DOTALL)
VALUES = re.compile(r"""(?:"[^"]*"|'[^']*'|\[[^]]*\]|[^,])+""")  # between commas that no brackets and quotes hold


@dataclasses.dataclass(frozen=True)
class Config:
    """Which experiment, which fields, how many seeds."""

    experiment: str = "language_model"
    """A file beside this one, or FILE.py of your own: main(config), and a dataclass Config with defaults for all."""
    base: tuple[str, ...] = ()
    """What the base sets: field=value, train.steps=500, core_options=[num_heads=2,peepholes=True]."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """field=value,value,...: each value makes a variant."""
    seeds: int = 3
    """So many, from the base's seed on."""
    metric: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A number of results.json to show; otherwise the first few that are not the same in all runs."""
    run: Path | None = None
    """The folder of everything; runs/ablation, and with --compare none, if not given."""
    compare: tuple[Path, ...] = ()
    """Finished run folders of the experiment, to compare instead of making any; the first is of the base."""
    allow_other_data: bool = False
    """Compare runs on other data, too."""
    smoke: bool = False
    """Every run as the experiment's own smoke run."""
    single: bool = False
    """Only the base, in this process, in the folder --run: what an ablation starts for each of its runs."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, not {self.seeds}")
        lone = (self.compare and (self.base or self.smoke)) or (self.single and self.run is None)
        if lone or bool(self.compare) + bool(self.vary) + self.single != 1:
            told = "give vary (field=value,value), or compare (finished run folders) without base and smoke"
            raise ValueError(f"{told}; single, which an ablation starts, needs run")


class Finished(NamedTuple):
    """What a finished run left; ``ignored`` are the fields of its config that do not count."""

    folder: Path
    ignored: set[str]
    config: dict[str, Any]
    environment: dict[str, Any]
    results: dict[str, Any]


Groups: TypeAlias = dict[str, dict[int, Finished]]  # by labels and seeds, the base first


def main(config: Config) -> dict[str, Any]:
    """Make the runs that are missing, compare, write; returns what ablation.json holds.

    Raises ValueError for settings that the experiment does not take and for a comparison of more than one field or of
    other data, TrainingError for folders of other runs and, after all else is done and written, for runs that failed.
    """
    experiment, folder, failed = load(config.experiment), config.run or FOLDER, dict[str, str]()
    if config.single:
        experiment.main(changed(experiment.Config(), base_settings(config), run=folder))
        return {}
    runs = [read_run(experiment, path) for path in config.compare] or make_runs(config, experiment, folder, failed)
    groups, notes = compare(runs, config.allow_other_data)
    comparisons, shown = measure(groups, config.metric)
    title, told = f"Ablation of {Path(config.experiment).stem}", [f"failed: {n}: {e}" for n, e in failed.items()]
    tables = [f"## {metric}\n\n{analysis.comparison_table(comparisons[metric])}" for metric in shown]
    text = "\n".join([f"# {title}\n", *tables, METHOD, *(f"- {note}" for note in notes + told), ""])
    print("\n" + text, flush=True)
    variants = []
    for label, group in groups.items():
        field = label.partition("=")[0] if label != "base" else None
        value = flatten(next(iter(group.values())).config).get(field) if field else None
        found = {metric: dataclasses.asdict(made[label]) for metric, made in comparisons.items()}
        folders = {seed: run.folder for seed, run in group.items()}
        variants.append({"label": label, "field": field, "value": value, "metrics": found, "runs": folders})
    report = {"experiment": config.experiment, "base": runs[0].config, "shown": shown, "notes": notes, "failed": failed}
    report = training.to_json(report | {"method": METHOD, "variants": variants}, "ablation")
    if config.run or not config.compare:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "ablation.json", report)
        write_atomic(folder / "ablation.md", text)
        try:
            analysis.draw_comparisons({m: comparisons[m] for m in shown}, folder / "ablation.png", title=title)
        except ImportError as error:
            print(f"no figure: {error}")
    if failed:
        raise training.TrainingError("; ".join([*told, "the same command tries again"]))
    return report


def load(name: str) -> Any:
    """The module of an experiment."""
    file = Path(name) if name.endswith(".py") else HERE / f"{name}.py"
    if not file.is_file():
        known = sorted(f.stem for f in HERE.glob("*.py") if EXPERIMENT.search(f.read_text(encoding="utf-8")))
        raise ValueError(f"unknown experiment {name!r}; known: {', '.join(known)}, or FILE.py")
    sys.path.append(str(file.resolve().parent))
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
        raise ValueError(f"{name} is no experiment ({needs}): {type(error).__name__}: {error}") from error
    return module


def setting(word: str, option: str, *taken: str) -> tuple[str, str]:
    """Field and value of field=value."""
    field, equals, value = word.partition("=")
    if not (field and equals) or field in taken:
        raise ValueError(f"{option} takes field=value, not {word!r}; an ablation itself sets --run, --seeds, --smoke")
    return field, value


def base_settings(config: Config) -> dict[str, str]:
    """Of --base and --smoke, by their fields."""
    settings, text = {"smoke": "True"} if config.smoke else {}, " ".join(config.base)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"base {text!r}: {error}") from None
    for field, value in (setting(word, "base", "run") for word in words):
        if settings.setdefault(field, value) != value:
            raise ValueError(f"base sets {field} twice: {settings[field]} and {value}")
    return settings


def changed(default: Any, settings: dict[str, str], prefix: str = "", **changes: Any) -> Any:
    """A config with fields, and fields of fields, set; what the outermost derives from its fields is derived anew."""
    fields = [field.name for field in dataclasses.fields(default) if field.init]
    hints, inner = get_type_hints(type(default)), dict[str, dict[str, str]]()
    for name, text in settings.items():
        head, dot, rest = name.partition(".")
        if head not in fields or (dot and not dataclasses.is_dataclass(getattr(default, head))):
            near = difflib.get_close_matches(name, fields, cutoff=0.5)
            known = f"{'near' if near else 'known'}: {', '.join(prefix + field for field in near or fields)}"
            raise ValueError(f"unknown field {prefix + name!r}; {known}")
        if dot:
            inner.setdefault(head, {})[rest] = text
        else:
            changes[head] = parsed(hints[head], text, prefix + head)
    changes |= {head: changed(getattr(default, head), group, f"{prefix}{head}.") for head, group in inner.items()}
    try:
        return dataclasses.replace(default, **changes) if prefix else type(default)(**changes)
    except ValueError as error:
        told = " ".join(f"{prefix}{field}={value}" for field, value in settings.items())
        raise ValueError(f"{told}: {error}") from None


def parsed(kind: Any, text: str, name: str) -> Any:
    """A value of this type: a Python literal if that fits, else the text; of a tuple or a list, [a,b] or one item."""
    items = VALUES.findall(text[1:-1]) if text[:1] + text[-1:] == "[]" else [text]
    for value in (literal(text), [*map(literal, items)], items):
        with contextlib.suppress(ValueError, TypeError):
            return training.from_json(kind, value, name)
    return training.from_json(kind, text, name)  # raises ValueError with the name and the text


def literal(text: str) -> Any:
    """The value that a text is in Python, or in JSON; else the text."""
    words = {"true": "True", "false": "False", "none": "None", "null": "None"}
    try:
        return ast.literal_eval(words.get(text.lower(), text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def spelled(field: str, value: Any) -> str:
    """field=value, so that the value reads as itself."""
    plain = isinstance(value, str) and value.isprintable() and literal(value) == value
    return f"{field}={value if plain else json.dumps(value, ensure_ascii=False)}"


def one_field(label: str, differences: list[str]) -> str:
    """The field that differs; raises ValueError where more than one does, or none."""
    if len(differences) == 1:
        return differences[0].partition(": ")[0]
    told = f"{len(differences)} fields:\n  " + "\n  ".join(differences) if differences else "no field that counts"
    raise ValueError(f"{label} differs from the base in {told}")


def variants_of(config: Config, experiment: Any) -> dict[str, dict[str, str]]:
    """Settings by labels, the base first; raises ValueError for variants that are not one field from the base."""
    settings = base_settings(config)
    variants, before = {"base": settings}, training.to_json(changed(experiment.Config(), settings))
    for word in config.vary:
        field, text = setting(word, "vary", "run", "seed", "smoke")
        if ",".join(VALUES.findall(text)) != text or not text:
            raise ValueError(f"vary {word!r} has an empty value ('' is written so)")
        for value in VALUES.findall(text):
            variant = changed(experiment.Config(), settings | {field: value})
            after = training.to_json(variant)
            if after != before:
                one_field(f"{field}={value}", config_differences(before, after, IGNORED | resumable_fields(variant)))
                variants[spelled(field, flatten(after).get(field, value))] = settings | {field: value}
    if len(variants) == 1:
        raise ValueError(f"vary {' '.join(config.vary)}: nothing but the base")
    return variants


def make_runs(config: Config, experiment: Any, folder: Path, failed: dict[str, str]) -> list[Finished]:
    """The finished runs, the base's first; runs that fail go into ``failed``."""
    variants = variants_of(config, experiment)
    if (folder / "config.json").exists():
        raise training.RunFolderError(f"{folder} is a run's own folder; an ablation needs another")
    first = changed(experiment.Config(), variants["base"]).seed
    finished, todo = dict[tuple[int, int], Finished](), []
    for seed in range(first, first + config.seeds):  # pairs get whole
        for index, (label, settings) in enumerate(variants.items()):
            path, settings = folder / safe(label) / f"seed{seed}", settings | {"seed": str(seed)}
            made = changed(experiment.Config(), settings, run=path)
            asked, earlier = training.to_json(made), training.read_json(path.with_name(f"asked-{path.name}.json"))
            changes = config_differences(earlier or asked, asked, {"run"} | resumable_fields(made))
            if changes:
                raise training.ConfigMismatchError(f"{path} was made by another config:\n  " + "\n  ".join(changes))
            if earlier and (path / "results.json").exists():
                finished[index, seed] = read_run(experiment, path)
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
            finished[key] = read_run(experiment, path)
        except training.TrainingError as error:
            failed[name] = str(error)
        print(f"  {failed.get(name, 'finished')}, {time.perf_counter() - begun:.1f} s", flush=True)
        runs = [finished[key] for key in sorted(finished)]
        if finished and min(finished)[0] == 0:  # what cannot be compared is not gone on with
            measure(compare(runs, config.allow_other_data)[0], config.metric)
    if not finished or min(finished)[0] != 0:
        told = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise training.TrainingError(f"no run of the base is finished: {told}")
    return [finished[key] for key in sorted(finished)]


def safe(label: str) -> str:
    """A folder's name; where characters had to go, with a number that keeps names apart."""
    name = re.sub(r"[^\w.=+-]", "_", label, flags=re.ASCII)[:80]
    return name if name == label else f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def execute(arguments: list[str], log: Path) -> None:
    """This program in a process of its own; raises TrainingError with what it says last, if it fails."""
    with open(log, "ab") as stream:
        begun = stream.tell()
        child = subprocess.Popen([sys.executable, __file__, *arguments], stdout=stream, stderr=subprocess.STDOUT)
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()  # let it save
            raise
    if code == training.EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        lines = log.read_bytes()[begun:].decode(errors="replace").split("\n")
        said = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
        raise training.TrainingError(f"{(said or ['it'])[-1].removeprefix('error: ')} (exit code {code}; {log})")


def read_run(experiment: Any, folder: Path) -> Finished:
    """What a finished run left; raises RunFolderError for one that is none, ValueError for another experiment's."""
    if folder.exists() and not folder.is_dir():
        raise training.RunFolderError(f"{folder} is a file, not a run folder")
    found = {name: training.read_json(folder / f"{name}.json") for name in ("config", "environment", "results")}
    for name, value in found.items():
        if not isinstance(value, dict):
            raise training.RunFolderError(f"{folder} is no finished run: it has no {name}.json")
    try:
        return Finished(
            folder, IGNORED | resumable_fields(training.from_json(experiment.Config, found["config"])), **found
        )
    except (ValueError, TypeError) as error:
        stem = Path(experiment.__file__).stem
        raise ValueError(f"{folder} is no run of {stem} (--experiment): {error}") from None


def compare(runs: list[Finished], allow_other_data: bool) -> tuple[Groups, list[str]]:
    """Runs by labels and seeds, the first run's config being the base, and what a reader should know.

    Raises ValueError for a run of other data or of more than one other field than the base's, and for one run twice.
    """
    groups: Groups = {}
    ignored = set[str]().union(*(run.ignored for run in runs))
    for run in runs:
        differences, label = config_differences(runs[0].config, run.config, ignored), "base"
        if differences:
            field = one_field(str(run.folder), differences)
            label = spelled(field, flatten(run.config).get(field))
        twin = groups.setdefault(label, {}).setdefault(run.config["seed"], run)
        if twin is not run:
            raise ValueError(f"{twin.folder} and {run.folder} are runs of the same config and seed ({label})")
    notes = []
    for label, group in groups.items():
        pairs = [(groups["base"][seed], run) for seed, run in group.items() if seed in groups["base"]]
        if not pairs:
            notes.append(f"{label} has no seed in common with the base: no differences, and data not compared")
        notes += [f"{label}: {note}" for pair in pairs if (note := data_note(*pair, allow_other_data))]
    rows = [flatten({name: run.environment.get(name) for name in MACHINE}) for run in runs]
    for name in rows[0]:
        if len(kinds := dict.fromkeys(json.dumps(row.get(name)) for row in rows)) > 1:
            notes.append(f"not all runs had the same {name}: {', '.join(kinds)}")
    return groups, [*dict.fromkeys(notes)]


def data_note(base: Finished, other: Finished, allowed: bool) -> str:
    """Nothing for runs on the same data; raises ValueError for others that neither results nor the user explain."""
    one, two = (str(run.environment.get("data_fingerprint")) for run in (base, other))
    named = [key for key in base.results if key.endswith("sha256")]
    # A fingerprint covers how data is cut into batches, too.
    known = bool(named) and all(base.results[key] == other.results.get(key) for key in named)
    if one == two:
        return ""
    if known or allowed:
        return f"another data fingerprint than the base's, {f'the same {named[0]}' if known else 'as allowed'}"
    told = f"{other.folder} ran on other data than {base.folder} (fingerprints {two[:12]} and {one[:12]})"
    raise ValueError(f"{told}; allow_other_data compares them where that is what the field is for")


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """Those in results.json, where what is not finite is a word."""
    return {k: float(v) for k, v in results.items() if type(v) in (int, float) or v in ("nan", "inf", "-inf")}


def measure(groups: Groups, named: tuple[str, ...]) -> tuple[dict[str, dict[str, analysis.Comparison]], list[str]]:
    """Comparisons by metrics; and those to show: the named ones, else the first four that are not the same in all."""
    rows = {label: {seed: numbers(run.results) for seed, run in group.items()} for label, group in groups.items()}
    comparisons = analysis.compare_metrics(rows)
    for name in named or [*comparisons][:1] or ["a metric"]:
        if name not in comparisons:
            known = ", ".join(comparisons) or "none"
            raise ValueError(f"{name} is not a number in the results of every run; known: {known}")
    spread = {name: {v for one in made.values() for v in one.values.values()} for name, made in comparisons.items()}
    return comparisons, list(named) or [name for name in spread if len(spread[name]) > 1][:4] or [*comparisons][:1]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a run that goes on is told, too
    training.command_line(main, Config, __doc__)
