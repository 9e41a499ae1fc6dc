"""Numbers for people."""
import pytest

from diffusion_jax.cost.units import duration, scaled


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 FLOP"), (7, "7.00 FLOP"), (999, "999 FLOP"), (1e3, "1.00 kFLOP"), (22_190_080, "22.2 MFLOP"), (1.234e9, "1.23 GFLOP"),
    (5.25e14, "525 TFLOP"), (3.2e17, "320 PFLOP"), (3.2e22, "32,000 EFLOP"), (1.5e-3, "1.50 mFLOP"), (7.2e-7, "720 nFLOP"),
])
def test_numbers_have_a_unit_that_fits(value, text):
    assert scaled(value, "FLOP") == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0021, "2.10 ms"), (359, "359 s"), (360, "0.10 h"), (9e6, "2,500.00 h")])
def test_long_times_are_hours(seconds, text):
    assert duration(seconds) == text
