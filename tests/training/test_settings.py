"""A config, written as JSON and read again."""

import dataclasses
import enum
import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest

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
        ({"number": "3"}, "config.number is '3', which is no int"),
        ({"number": True}, "config.number is True, which is no int"),
        ({"flag": 1}, "config.flag is 1, which is no bool"),
        ({"rate": "fast"}, "config.rate is 'fast', which is no float"),
        ({"name": 3}, "config.name is 3, which is no str"),
        ({"way": "back"}, "config.way is 'back', which is no Literal"),
        ({"sizes": [1, "2"]}, "config.sizes.1 is '2', which is no int"),
        ({"pair": ["x"]}, r"config.pair is \['x'\], which is no tuple"),
        ({"colour": "GREEN"}, "config.colour is 'GREEN', which is no Colour"),
        ({"near": None}, "config.near is None, which is no Near"),
        ({"near": {}}, "config.near is no Near: it has no size"),
        ({"maybe": {"size": 1, "place": 2}}, "config.maybe.place is 2, which is no Path"),
        ({"either": {"kind": "Near", "size": "a"}}, "config.either.size is 'a', which is no int"),
        ({"number": None, "extra": 1}, "config is no Config: it has extra"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        from_json(Config, to_json(Config()) | change)


def test_fields_that_are_missing_and_unknown_are_both_named():
    written = to_json(Config()) | {"extra": 1, "more": 2}
    del written["rate"]
    with pytest.raises(ValueError, match="config is no Config: it has no rate and has extra, more"):
        from_json(Config, written)


def test_what_a_config_itself_refuses_is_refused():
    with pytest.raises(ValueError, match="steps"):
        from_json(TrainConfig, to_json(TrainConfig(steps=3)) | {"steps": -1})
