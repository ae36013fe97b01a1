"""The gradient-flow experiment as a user runs it: parts, figures, a report, and nothing computed twice."""

import dataclasses
import math

import pytest
from compilation import unoptimized

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `plots`)")

from experiments import gradient_flow
from experiments.gradient_flow import FILES, PARTS, Config, main
from jaxseq.pipelines.gradient_flow import Clipping, HeatMaps, Mixers
from jaxseq.training import ConfigMismatchError, read_json


@pytest.mark.full
def test_the_same_command_computes_nothing_again(tmp_path, monkeypatch, capsys):
    config = Config(run=tmp_path / "run", smoke=True, parts=("heat-maps",), heat_maps=HeatMaps(cores=("mingru",)))
    with unoptimized():
        results = main(config)
    assert 0 < results["heat_maps/mingru_first_to_last_before"] < math.inf
    assert read_json(config.run / "results.json") == results
    assert (config.run / "figures" / FILES["heat-maps"]).stat().st_size > 5000
    assert "heat maps: mingru, squared error" in capsys.readouterr().out
    rows = read_json(config.run / "parts" / "heat-maps.json")["values"]["mingru"]
    assert rows["steps"] == [0, 2, 4] and {len(row) for row in rows["norms"]} == {7}  # positions 1 to T - 1 of T = 8
    monkeypatch.setattr(gradient_flow, "compute", None)
    assert main(config) == results
    with pytest.raises(ConfigMismatchError, match="seed"):
        main(dataclasses.replace(config, seed=1))


@pytest.mark.full
def test_all_parts_run_and_add_up_in_one_folder(tmp_path):
    parts = {"heat_maps": HeatMaps(cores=("elman", "attention")), "tasks": Mixers(cores=("mingru",))}
    config = Config(run=tmp_path / "run", smoke=True, **parts)
    with unoptimized():
        main(dataclasses.replace(config, parts=("clipping",)))
        results = main(config)
    assert {name.partition("/")[0].replace("_", "-") for name in results} == set(PARTS)
    assert all(math.isfinite(value) for value in results.values())
    assert results["singular_values/largest_ratio_to_bound"] < 1 + 1e-4
    assert results["singular_values/chain_peak"] > 1
    assert results["forget_bias/1.0_norm"] > results["forget_bias/0.0_norm"]
    assert results["clipping/0.3_not_clipped_clipped_fraction"] == 0
    assert all((config.run / "figures" / file).is_file() for file in FILES.values())
    report = (config.run / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/png") == len(PARTS) and "baseline" in report


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(parts=()), "parts: each at most once, and at least one, not none"),
        (lambda: Config(parts=("tasks", "tasks")), "not tasks tasks"),
        (lambda: Config(seed=-1), "seed must be at least 0, not -1"),
        (lambda: HeatMaps(every=0), "heat_maps: every must be at least 1, not 0"),
        (lambda: Mixers(cores=()), "mixers: cores must be at least 1, not 0"),
        (lambda: Clipping(seeds=0), "clipping: seeds must be at least 1, not 0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
