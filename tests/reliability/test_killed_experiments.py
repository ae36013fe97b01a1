"""Whole experiments that are killed at any moment, the evaluation and the report at the end included, and started
again: the results are those of a run that nobody disturbed.
"""

import random
import signal

import pytest
from experiment_processes import LANGUAGE_MODEL, TRANSLATION, checksums, command, ended, environment, killed, results

from tests.experiments.small_runs import write_book

MOMENTS = 30


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [LANGUAGE_MODEL, TRANSLATION], ids=["language_model", "translation"])
def test_killed_at_thirty_random_moments_it_ends_with_the_same_results(tmp_path, experiment):
    env = environment(tmp_path / "xla")
    more = ["--text", str(write_book(tmp_path))] if experiment is LANGUAGE_MODEL else []
    whole, timed = tmp_path / "whole", tmp_path / "timed"
    for run in (whole, timed):  # the second of them finds its programs in the cache
        done = ended(command(experiment, run, *more), env)
        assert done.code == 0, done.err
    assert results(whole) == results(timed)
    seconds = (timed / "report.html").stat().st_mtime - (timed / "config.json").stat().st_mtime
    codes = []
    for index in range(MOMENTS):
        run, draw = tmp_path / str(index), random.Random(index)
        words = command(experiment, run, *more)
        delay = draw.uniform(0, 1.05 * seconds)
        codes.append(killed(words, env, signal.SIGKILL, begun=run / "config.json", delay=delay).code)
        done = ended(words, env)
        assert done.code == 0 and "Traceback" not in done.err, (index, delay, done.err)
        assert results(run) == results(whole), (index, delay)
        assert checksums(run) == checksums(whole), (index, delay)
    assert set(codes) <= {0, -signal.SIGKILL} and codes.count(-signal.SIGKILL) > MOMENTS / 2, codes
