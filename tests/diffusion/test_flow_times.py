"""The times of diffusers' flow matching; its own numbers are in the goldens, sd3/schedule_flow."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.flow_times import flow_match, noise_levels, shifted, unshifted
from diffusion_jax.diffusion.process import DDPM, Flow


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_noise_levels_are_shifted_twice_at_the_small_end(shift):
    """By the two steps of the scheduler itself, with fractions that are worked out by hand for a shift of 3."""
    times = flow_match(Flow(shift), 6)
    assert times.dtype == np.float32 and times[0] == 1 and times[-1] == 0 and (np.diff(times) < 0).all()
    table = shift * np.arange(1, 1001) / 1000 / (1 + (shift - 1) * np.arange(1, 1001) / 1000)
    u = np.linspace(table[-1], table[0], 6)
    np.testing.assert_allclose(Flow(shift).sigma(times[:-1]), shift * u / (1 + (shift - 1) * u), rtol=1e-5)
    if shift == 3:
        assert float(Flow(shift).sigma(times[-2])) == pytest.approx(9 / 1008, rel=1e-4)


@pytest.mark.parametrize("levels", ["karras", "exponential", pytest.param("beta", marks=pytest.mark.slow)])
def test_levels_lie_between_the_first_and_the_last(levels):
    plain, sigma = noise_levels(3.0, 8), noise_levels(3.0, 8, levels)
    assert sigma[0] == pytest.approx(plain[0]) and sigma[-1] == pytest.approx(plain[-1]) and (np.diff(sigma) < 0).all()


def test_equal_ratios_and_another_last_level():
    plain = noise_levels(3.0, 8)
    ratio = noise_levels(3.0, 8, "exponential")
    np.testing.assert_allclose(ratio[1:] / ratio[:-1], ratio[1] / ratio[0])
    stretched = noise_levels(3.0, 8, terminal=0.1)
    assert stretched[-1] == pytest.approx(0.1) and stretched[0] == 1
    np.testing.assert_allclose((1 - stretched[1:]) / (1 - plain[1:]), 0.9 / (1 - plain[-1]))
    assert unshifted(shifted(np.array([0.25]), 3.0), 3.0) == pytest.approx(0.25)


@pytest.mark.parametrize("process, steps, options, says", [
    (DDPM("linear"), 4, {}, "need a Flow"), (Flow(), 0, {}, "steps"), (Flow(), 4, {"levels": "karas"}, "karras"),
    (Flow(), 4, {"terminal": 1.0}, "terminal"),
])
def test_what_has_no_such_times_is_refused(process, steps, options, says):
    with pytest.raises(ConfigError, match=says):
        flow_match(process, steps, **options)


def test_one_step_begins_at_noise():
    np.testing.assert_array_equal(flow_match(Flow(3.0), 1), [1, 0])
