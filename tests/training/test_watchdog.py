import threading
import time

import jax
import jax.numpy as jnp
import pytest

from jaxseq.training.watchdog import EXIT_HUNG, Watchdog


@pytest.fixture
def watchdog():
    """A watchdog with small times, after steps of 1 ms, which records its exit code."""
    codes: list[int] = []
    made = Watchdog(2.0, 0.2, tick_s=0.02, end=codes.append)
    for _ in range(6):
        made.step()
        time.sleep(0.001)
    yield made, codes
    made.close()


def test_a_step_that_hangs_ends_the_process_with_its_stacks(watchdog, capfd):
    _, codes = watchdog
    time.sleep(0.6)
    assert codes == [EXIT_HUNG]
    err = capfd.readouterr().err
    assert "a step has taken more than 0.2 s" in err
    assert "test_a_step_that_hangs" in err and "watchdog.py" in err


def test_steps_in_time_do_not(watchdog):
    made, codes = watchdog
    for _ in range(8):
        time.sleep(0.05)
        made.step()
    assert codes == []


def test_nothing_is_watched_in_a_pause_and_the_step_around_it_has_no_duration(watchdog):
    made, codes = watchdog
    with made.paused():
        time.sleep(0.5)
    made.step()
    made.step()
    assert codes == [] and made.limit == 0.2


def test_nothing_is_watched_before_three_steps_have_a_duration():
    codes: list[int] = []
    made = Watchdog(2.0, 0.05, tick_s=0.02, end=codes.append)
    for _ in range(3):
        made.step()
    time.sleep(0.2)
    made.close()
    assert codes == [] and made.limit is None


def test_the_limit_is_a_multiple_of_the_median():
    made = Watchdog(20.0, 0.01)
    for duration in (0.0, 0.05, 0.05, 0.3, 0.05):
        time.sleep(duration)
        made.step()
    made.close()
    assert made.limit is not None and 0.9 < made.limit < 2.5


def test_compilation_is_not_a_hang(watchdog):
    _, codes = watchdog

    @jax.jit
    def slow(x):
        time.sleep(0.5)  # while the function is traced
        return x + 1

    slow(jnp.zeros(3))
    assert codes == []


def test_it_can_be_turned_off():
    before = threading.active_count()
    made = Watchdog(None)
    for _ in range(9):
        made.step()
    assert threading.active_count() == before and made.limit is None
    made.close()


@pytest.mark.parametrize(
    ("factor", "minimum", "tick"), [(1.0, 1.0, 1.0), (-2.0, 1.0, 1.0), (2.0, 0.0, 1.0), (2.0, 1.0, 0.0)]
)
def test_values_that_make_no_sense_are_refused(factor, minimum, tick):
    with pytest.raises(ValueError, match="must be above"):
        Watchdog(factor, minimum, tick_s=tick)
