"""A config, written as JSON and read again."""

import ast
import dataclasses
import enum
import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseq import training
from jaxseq.training import OptimizerConfig, TrainConfig, from_json, to_json


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Named(enum.StrEnum):
    ONE = "one"


@dataclasses.dataclass(frozen=True)
class Near:
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Far:
    size: int = 3
    place: Path | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    number: int = 3
    rate: float = 1e-3
    bound: float | None = math.inf
    name: str | None = "lstm"
    flag: bool = True
    text: Path | None = Path("a/b")
    way: Literal["zero", "carry"] = "carry"
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[str, Path] = ("x", Path("y"))
    several: list[float] = dataclasses.field(default_factory=lambda: [1.0, 2.5])
    table: dict[str, Near] = dataclasses.field(default_factory=lambda: {"a": Near(4)})
    names: frozenset[str] = frozenset({"b", "a"})
    colour: Colour = Colour.BLUE
    named: Named = Named.ONE
    near: Near = Near(7)
    maybe: Far | None = Far(1, Path("z"))
    either: Near | Far = Far(2)
    options: Any = None


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(text=None, name=None, bound=-2.0, maybe=None, either=Near(9), sizes=(), options=[1, {"a": None}]),
        TrainConfig(steps=3, truncation="carry", ema_decay=0.9),
        OptimizerConfig(learning_rate=0.1, warmup_steps=2),
    ],
    ids=["every-kind", "other-values", "train", "optimizer"],
)
def test_what_is_written_is_read_as_it_was(config):
    written = json.loads(json.dumps(to_json(config)))
    read = from_json(type(config), written)
    assert read == config
    assert to_json(read) == written


def test_a_whole_number_in_a_field_of_floats_is_a_float():
    assert type(from_json(Config, to_json(Config(rate=1))).rate) is float


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"number": "3"}, "config.number must be of type int, not '3'"),
        ({"number": True}, "config.number must be of type int, not True"),
        ({"flag": 1}, "config.flag must be of type bool, not 1"),
        ({"rate": "fast"}, "config.rate must be of type float, not 'fast'"),
        ({"name": 3}, "config.name must be of type str, not 3"),
        ({"way": "back"}, "config.way must be one of 'zero', 'carry', not 'back'"),
        ({"sizes": [1, "2"]}, "config.sizes.1 must be of type int, not '2'"),
        ({"pair": ["x"]}, r"config.pair must be of type tuple\[str, Path\], not \['x'\]"),
        ({"colour": "GREEN"}, "config.colour must be one of 'RED', 'BLUE', not 'GREEN'"),
        ({"near": None}, "config.near must be of type Near, not None"),
        ({"maybe": {"size": 1, "place": 2}}, "config.maybe.place must be of type Path, not 2"),
        ({"either": {"kind": "Near", "size": "a"}}, "config.either.size must be of type int, not 'a'"),
        ({"either": {"kind": "None", "size": 1}}, "config.either must be of type .*Near.*Far"),
        ({"number": None, "extra": 1}, "config does not fit the fields of Config: unknown extra"),
        ({"near": {"sizes": 1}}, r"config.near .* Near: unknown sizes \(did you mean size\?\)"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        from_json(Config, to_json(Config()) | change)


@dataclasses.dataclass(frozen=True)
class Newer(Config):
    """Config after fields were added, one of them without a default."""

    required: int = dataclasses.field(kw_only=True)
    added: float = 0.5
    nested: Near = dataclasses.field(default_factory=Near)


def test_fields_that_are_missing_and_unknown_are_named_with_near_matches():
    written = to_json(Config()) | {"aded": 1, "zzz": 2}
    message = r"missing required; unknown aded \(did you mean added or named\?\); unknown zzz \(known: number, .*"
    with pytest.raises(ValueError, match=message):
        from_json(Newer, written)


@given(st.sets(st.sampled_from([field.name for field in dataclasses.fields(Newer) if field.name != "required"])))
def test_a_config_written_before_fields_existed_reads_with_their_defaults(absent):
    values = {
        "number": 9,
        "name": None,
        "sizes": (),
        "near": Near(1),
        "either": Near(5),
        "added": 2.0,
        "nested": Near(2),
    }
    written = to_json(Newer(**values, required=4))
    written["either"] = {"kind": "Near"}
    read = from_json(Newer, {name: value for name, value in written.items() if name not in absent})
    expected = {name: value for name, value in (values | {"either": Near()}).items() if name not in absent}
    assert read == Newer(**expected, required=4)


def test_what_a_config_itself_refuses_is_refused():
    with pytest.raises(ValueError, match="steps"):
        from_json(TrainConfig, to_json(TrainConfig(steps=3)) | {"steps": -1})


def fields_without_help(file):
    """The fields of a file's dataclasses that no docstring follows, which --help shows."""
    missing = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(made) for made in node.decorator_list):
            for row, after in zip(node.body, [*node.body[1:], None], strict=True):
                described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(row, ast.AnnAssign) and not described:
                    missing.append(f"{file.name}: {node.name}.{ast.unparse(row.target)}")
    return missing


def test_every_field_of_a_dataclass_of_training_has_help():
    files = sorted(Path(training.__file__).parent.glob("*.py"))
    assert [row for file in files for row in fields_without_help(file)] == []
