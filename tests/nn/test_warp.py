"""The warp against NumPy's flips and turns and against a function that is known everywhere, the nine numbers, and the draws."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.nn import warp

WARPED, VECTOR = jax.jit(warp.warped), jax.jit(warp.vector)
DRAWS = jax.jit(warp.draws, static_argnums=(1, 2, 3))

RNG = np.random.default_rng(0)
NAMES = ("mirrored", "flipped", "larger", "turned", "along", "stretched", "right", "down")


def numbers(**values):
    """a0 ... a7 of one picture by name, 0 for all others: [1, 8]."""
    return jnp.array([[values.get(name, 0.0) for name in NAMES]])


def picture(height=6, width=6):
    return RNG.uniform(-1, 1, (1, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(("values", "expected", "exact"), [
    ({}, lambda x: x, True),
    ({"mirrored": 1}, lambda x: x[:, ::-1], True),
    ({"flipped": 1}, lambda x: x[::-1], True),
    ({"mirrored": 1, "flipped": 1}, lambda x: x[::-1, ::-1], True),
    ({"turned": np.pi / 2}, np.rot90, False),
    ({"turned": np.pi}, lambda x: np.rot90(x, 2), False),
    ({"turned": -np.pi / 2}, lambda x: np.rot90(x, -1), False),
    ({"mirrored": 1, "turned": np.pi / 2}, lambda x: np.rot90(x[:, ::-1]), False),
    ({"along": 1.0}, lambda x: x, False),
])
def test_flips_and_right_angles_are_those_of_numpy(values, expected, exact):
    x = picture()
    y = WARPED(jnp.asarray(x), numbers(**values))
    np.testing.assert_allclose(y[0], expected(x[0]), atol=0 if exact else 3e-6)


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (2, 0), (-3, 2), (0, -9), (13, 7)])
def test_whole_pixels_move_into_a_mirror_image(rows, columns):
    x = picture(5, 8)
    moved = WARPED(jnp.asarray(x), numbers(right=columns / 8 * 8, down=rows / 5 * 8))
    wide = np.pad(x[0], ((20, 20), (20, 20), (0, 0)), mode="reflect")
    np.testing.assert_allclose(moved[0], wide[20 - rows : 25 - rows, 20 - columns : 28 - columns], atol=3e-5)


def test_a_picture_of_one_pixel_is_itself():
    np.testing.assert_allclose(WARPED(jnp.full((1, 1, 1, 1), 0.5), numbers(right=1, turned=1, larger=1)), 0.5, rtol=1e-6)


HEIGHT, WIDTH = 32, 48


def waves(y, x):
    """A smooth picture that is known everywhere: about the middle of its edges it is its own mirror image."""
    return np.cos(2 * np.pi * y / (HEIGHT - 1) + 0) * 0.5 + np.cos(np.pi * x / (WIDTH - 1)) * 0.4


def maps(a):
    """G of (6) as a matrix, of the nine numbers (7) alone."""
    mirrored, flipped, larger, cos, sin, u, v, right, down = (float(number) for number in a)
    cos, angle, stretched = cos + 1, np.arctan(v / u) if u else 0, np.sign(u) * np.hypot(u, v)

    def linear(matrix):
        return np.block([[np.array(matrix), np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])

    def turn(c, s):
        return linear([[c, s], [-s, c]])                               # y points down

    stretch = turn(np.cos(angle), np.sin(angle)) @ linear(np.diag([2 ** (stretched / 5), 2 ** (-stretched / 5)]))
    stretch = stretch @ turn(np.cos(angle), -np.sin(angle))
    move = np.array([[1, 0, WIDTH * right / 8], [0, 1, HEIGHT * down / 8], [0, 0, 1]])
    scale = linear(np.diag([2 ** (larger / 5)] * 2))
    return move @ stretch @ turn(cos, sin) @ scale @ linear(np.diag([1 - 2 * mirrored, 1 - 2 * flipped]))


@pytest.mark.parametrize("values", [
    {"larger": 1.5}, {"larger": -1}, {"turned": 0.7}, {"along": 0.4, "stretched": 2}, {"along": -1.5, "stretched": -1.3},
    {"right": 0.37, "down": -1.21},
    {"mirrored": 1, "flipped": 1, "larger": 0.5, "turned": -2.5, "along": 1.1, "stretched": 0.8, "right": -0.4, "down": 0.9},
])
def test_the_nine_numbers_say_what_was_done(values):
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    a = numbers(**values)
    warped = WARPED(jnp.asarray(waves(y, x), jnp.float32)[None, ..., None], a)[0, ..., 0]
    middle = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2, 0])
    points = np.stack([x, y, np.ones_like(x)], -1) - middle             # [H, W, 3]
    before = points @ np.linalg.inv(maps(VECTOR(a)[0])).T + middle
    np.testing.assert_allclose(warped, waves(before[..., 1], before[..., 0]), atol=2e-3)


def test_the_draws_are_those_of_the_table():
    a = np.asarray(DRAWS(jax.random.key(0), 40_000, 0.3, 0.5))
    count = len(a)
    assert set(np.unique(a[:, :2])) == {0, 1}
    for share, expected in [(a[:, 0].mean(), 0.5), (a[:, 1].mean(), 0.15), *((np.mean(a[:, i] != 0), 0.3) for i in range(2, 8))]:
        assert abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5
    np.testing.assert_array_equal(a[:, 4] != 0, a[:, 5] != 0)           # of one line: all or none
    np.testing.assert_array_equal(a[:, 6] != 0, a[:, 7] != 0)
    on = a != 0
    for i, other in ((1, 2), (2, 3), (3, 4), (4, 6)):                    # of two lines: each for itself
        share = 0.3 * (0.15 if i == 1 else 0.3)
        assert abs(np.mean(on[:, i] & on[:, other]) - share) < 0.01
    for i in (2, 5, 6, 7):
        assert stats.kstest(a[on[:, i], i], "norm").pvalue > 1e-3
    for i, half in ((3, np.pi), (4, np.pi / 2)):
        assert stats.kstest(a[on[:, i], i], stats.uniform(-half, 2 * half).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(a[on[:, 6], 6], a[on[:, 6], 7])[0, 1]) < 0.03


@pytest.mark.parametrize(("rate", "mirror", "share"), [(0.0, 0.0, 0), (0.0, 1.0, 1), (1.0, 0.0, 0)])
def test_nothing_is_drawn_at_rate_nothing(rate, mirror, share):
    a = np.asarray(DRAWS(jax.random.key(1), 50, rate, mirror))
    assert a[:, 0].mean() == share and bool(a[:, 2:].any()) == bool(rate)
    if not rate:
        np.testing.assert_array_equal(VECTOR(a)[:, 1:], 0)
