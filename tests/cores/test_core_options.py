"""Core options as a command line gives them: of the kind that the field has."""

from functools import partial

import pytest

from jaxseq.cores import LSTM, RGLRU
from jaxseq.cores.table import make_core
from jaxseq.testing import check_core


@pytest.mark.parametrize("text", ["30", "30.0"])
def test_a_field_that_may_be_none_takes_the_kind_it_is_annotated_with(text: str) -> None:
    core = make_core("attention", 8, [f"soft_cap={text}", "num_heads=2"])
    assert core.soft_cap == 30.0 and type(core.soft_cap) is float
    assert core.num_heads == 2
    assert make_core("attention", 8, ["soft_cap=None", "window=None"]).soft_cap is None


def test_a_value_of_another_kind_is_refused_by_name() -> None:
    for option, kind in (("num_heads=2.5", "int"), ("soft_cap=much", "float"), ("window=True", "int")):
        with pytest.raises(ValueError, match=f"'{option}' needs a value of type {kind}"):
            make_core("attention", 8, [option])
    with pytest.raises(ValueError, match=r"soft_cap=-1\.0 is not positive"):
        make_core("attention", 8, soft_cap=-1.0).initial_carry((1,))
    with pytest.raises(ValueError, match="window=0 is not positive"):
        make_core("attention", 8, ["window=0"]).initial_carry((1,))
    with pytest.raises(ValueError, match=r"gate_rank=16 and temperature=-1\.0 must be positive"):
        make_core("gla", 8, ["temperature=-1.0"]).initial_carry((1,))


def test_an_option_given_twice_is_refused():
    with pytest.raises(ValueError, match="core 'attention' is given num_heads twice: 2 and 4"):
        make_core("attention", 8, ["num_heads=2", "num_heads=4"])


OPTIONS = {
    "a decay by channel": partial(make_core, "delta", 8, ["decay=channel", "num_heads=2"]),
    "a projected output": partial(LSTM, 8, cell_size=11, peepholes=True),
    "an unscaled start": partial(RGLRU, 8, unscaled_start=True),
}


@pytest.mark.full
@pytest.mark.parametrize("name", OPTIONS)
def test_options_obey_the_contract(name: str) -> None:
    check_core(OPTIONS[name], quick=True)
