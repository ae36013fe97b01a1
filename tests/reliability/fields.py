"""Every numeric field of every experiment, found in the dataclasses themselves, and values to put into it."""

import dataclasses
import importlib
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxseq import training
from jaxseq.models import CaptionerConfig
from jaxseq.models.detection import DetectorConfig
from jaxseq.pipelines import SearchConfig
from jaxseq.training import check_numbers, cli

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = tuple(sorted(file.stem for file in (ROOT / "experiments").glob("*.py") if file.stem != "__init__"))

INTEGERS = (0, -1, 2**31, 2**63, 10**400)
FLOATS = (0.0, -1.0, 1e300, float("nan"), float("inf"))

SEED_VALUES = (0, 2**31)
"""The integers above that a seed may be: up to 2**32 - 1."""

NEGATIVE = {
    "threshold": "the score of an R-CNN detection is a margin",
    "hard_margin": "a margin of a support vector machine",
    "easy_margin": "a margin of a support vector machine",
    "biases": "an initial value",
    "shown_bias": "one of biases",
}
"""The fields that may be negative, and why."""


def contexts(experiment: str) -> tuple[dict[str, Any], ...]:
    """Further configs of an experiment, in which fields are read that another method ignores or refuses."""
    if experiment == "detection":
        return ({"detector": DetectorConfig(model="rcnn")},)
    if experiment == "captioning":
        patches = {"model": CaptionerConfig(encoder="patches", decoder="transformer")}
        return patches, {"search": SearchConfig(beams=2)}
    return {
        "generate": ({"beams": 4, "groups": 2, "normalization": "gnmt"}, {"temperature": 0.5}),
        "translate": ({"beams": 2},),
        "caption": ({"beams": 2}, {"samples": 2}),
        "translation": ({"search": SearchConfig(beams=2)}, {"tokens": "bpe"}),
        "language_model": ({"tokens": "bpe"},),
    }.get(experiment, ())


class Case(NamedTuple):
    """A config of an experiment with one number replaced."""

    experiment: str
    base: str  # the classes of the fields that allow several, and the context
    path: tuple[str, ...]
    index: int | None  # into a tuple
    value: int | float

    @property
    def name(self) -> str:
        """The dotted name of the field."""
        return ".".join(self.path)

    def __str__(self) -> str:
        """The field and the value in words."""
        return f"{self.experiment}{self.base} {self.name}={self.value!r:.40}"


def config_class(experiment: str) -> type:
    """The dataclass of an experiment."""
    return importlib.import_module(f"experiments.{experiment}").Config


def members(hint: Any) -> list[Any]:
    """The types of a union, without annotations; a type that is no union is the only one."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [one for option in typing.get_args(hint) for one in members(option)]
    return [hint]


def hints_of(kind: type) -> dict[str, Any]:
    """The types of the fields of a dataclass that its ``__init__`` takes."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def instance(kind: type, **given: Any) -> Any:
    """The defaults of a dataclass; a required field is a path of any name."""
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in given:
            given[field.name] = (Path("x"),) if typing.get_origin(hints_of(kind)[field.name]) is tuple else Path("x")
    return kind(**given)


def bases(experiment: str) -> Iterator[tuple[str, Any]]:
    """The default config, one for each other dataclass of a field that allows several, and the contexts."""
    kind = config_class(experiment)
    given = {"vary": ("steps=1,2",)} if experiment == "ablation" else {}
    default = instance(kind, **given)
    yield "", default
    for name, hint in hints_of(kind).items():
        for option in members(hint):
            if dataclasses.is_dataclass(option) and type(getattr(default, name)) is not option:
                yield f"[{name}={option.__name__}]", dataclasses.replace(default, **{name: instance(option)})
    for context in contexts(experiment):
        yield f"[{' '.join(context)}]", dataclasses.replace(default, **context)


def numbers(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int | None, type]]:
    """The path, the index in a tuple, and the type of each number."""
    for name, hint in hints_of(type(config)).items():
        value, here = getattr(config, name), (*path, name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, here)
        for option in members(hint):
            if option in (int, float):
                yield here, None, option
            elif typing.get_origin(option) is tuple:
                inner = [kind for kind in typing.get_args(option) if kind in (int, float)]
                yield from ((here, index, inner[0]) for index in range(len(value or ())) if inner)


def cases(experiment: str) -> list[Case]:
    """All cases of an experiment, without those of the same class and field in several bases."""
    found: dict[tuple, Case] = {}
    for base, config in bases(experiment):
        for path, index, kind in numbers(config):
            owner = config
            for name in path[:-1]:
                owner = getattr(owner, name)
            context = base if base and "=" not in base else type(owner).__name__
            for value in INTEGERS if kind is int else FLOATS:
                found.setdefault((context, path, index, repr(value)[:50]), Case(experiment, base, path, index, value))
    return list(found.values())


def legal(case: Case) -> bool:
    """Whether the value may be accepted: 0 anywhere, numbers below it where they are meant, large seeds."""
    name = case.path[-1]
    if name == "seed" or name.endswith("_seed"):
        return case.value in SEED_VALUES
    return case.value == 0 or (case.value == -1 and name in NEGATIVE)


def build(case: Case, base: Any) -> Any:
    """The config of a case; raises what its dataclasses raise."""

    def put(config: Any, path: tuple[str, ...]) -> Any:
        name, *rest = path
        value: Any = case.value
        if rest:
            value = put(getattr(config, name), tuple(rest))
        elif case.index is not None:
            value = list(getattr(config, name))
            value[case.index] = case.value
            value = tuple(value)
        return dataclasses.replace(config, **{name: value})

    return put(base, case.path)


def refusal(case: Case, base: Any) -> str | None:
    """The message of the ValueError that refuses a case, or None."""
    try:
        check_numbers(build(case, base))
    except ValueError as error:
        return str(error)
    return None


def accepted(experiment: str) -> list[Case]:
    """The cases that are not refused, one for each class, field and value."""
    configs, found = dict(bases(experiment)), dict[tuple, Case]()
    for case in cases(experiment):
        owner = configs[case.base]
        for name in case.path[:-1]:
            owner = getattr(owner, name)
        if case.index in (None, 0) and refusal(case, configs[case.base]) is None:
            found.setdefault((type(owner), case.path[-1], case.value), case)
    return list(found.values())


READS = {"generate": "language_model", "translate": "translation", "caption": "captioning", "detect": "detection"}
"""The experiments that read a run folder of another."""


def small(experiment: str, case: Case, folder: Path) -> Any:
    """The config that a case changes, in the sizes of a smoke run; those that read a run find it in the folder."""
    module, base = importlib.import_module(f"experiments.{experiment}"), dict(bases(experiment))[case.base]
    if experiment in READS:
        given: dict[str, Any] = {"text": ("abc",)} if experiment == "translate" else {}
        given |= {"images": (folder / "image.png",)} if experiment in ("caption", "detect") else {}
        return dataclasses.replace(base, run=folder / READS[experiment] / "base", **given)
    base = dataclasses.replace(base, run=folder / experiment / "case", smoke=True)
    if experiment == "gradient_flow" and len(case.path) > 1:
        base = dataclasses.replace(base, parts=(case.path[0].replace("_", "-"),))
    if hasattr(base, "cache"):
        base = dataclasses.replace(base, cache=folder / "cache")
    if not hasattr(module, "smoke"):
        return base
    return dataclasses.replace(module.smoke(base), smoke=False)  # so that the case is not overwritten


if __name__ == "__main__":  # EXPERIMENT NUMBER FOLDER: the experiment with this accepted case, as a command does it
    experiment, chosen = sys.argv[1], accepted(sys.argv[1])[int(sys.argv[2])]
    config = small(experiment, chosen, Path(sys.argv[3]))
    cli.tyro = types.SimpleNamespace(cli=lambda *_, **__: build(chosen, config))
    sys.argv[1:] = []
    training.run_cli(importlib.import_module(f"experiments.{experiment}").main, type(config), None)
