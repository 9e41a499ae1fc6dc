"""Post-hoc EMA against numerical integrals, and against averages that were tracked while training."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.build import ConfigError
from diffusion_jax.train import ema, posthoc
from diffusion_jax.train.shard import make_mesh
from diffusion_jax.types import TrainState


@pytest.mark.parametrize(("t", "s"), [(3.0, 8.0), (8.0, 3.0), (5.0, 5.0)])
@pytest.mark.parametrize(("std", "other"), [(0.05, 0.1), (0.1, 0.1), (0.25, 0.05)])
def test_the_correlation_is_the_integral_of_the_product(t, s, std, other):
    tau = (np.arange(200_000) + 0.5) / 200_000 * max(t, s)

    def profile(end, gamma):
        return np.where(tau <= end, (gamma + 1) * tau**gamma / end ** (gamma + 1), 0)

    g, h = ema.exponent(std), ema.exponent(other)
    want = np.mean(profile(t, g) * profile(s, h)) * max(t, s)
    np.testing.assert_allclose(posthoc.correlation(t, g, s, h), want, rtol=1e-3)


def test_an_average_that_is_there_is_taken_as_it_is():
    times, stds = [4, 4, 8, 8], [0.05, 0.1, 0.05, 0.1]
    found = posthoc.coefficients(times, stds, [8, 4], [0.1, 0.05])
    np.testing.assert_allclose(found, np.array([[0, 1], [0, 0], [0, 0], [1, 0]]), atol=1e-9)


def test_profiles_are_reconstructed():
    times = np.repeat(np.arange(1, 33), 2) * 4
    stds = np.tile([0.05, 0.1], 32)
    targets = [0.06, 0.13, 0.2]
    weights = posthoc.coefficients(times, stds, [128] * 3, targets)
    got, want = weights.T @ posthoc.response(times, stds, 128), posthoc.response([128] * 3, targets, 128)
    assert np.abs(weights.sum(axis=0) - 1).max() < 1e-12
    assert np.abs(got - want).sum(axis=1).max() < 0.03                           # of a total of 1


def walk(steps):
    """Parameters that move as training moves them: fast, then slower, with noise."""
    rng, value = np.random.default_rng(0), np.zeros((4, 3), np.float32)
    for step in range(1, steps + 1):
        value = value + rng.normal(size=value.shape).astype(np.float32) / step**0.5
        yield step, {"a": {"weight": jnp.asarray(value)}}


def train(folder, steps, every, **options):
    """Snapshots of two averages of a walk, and the final states of four."""
    profiles = {"ema": ema.Power(0.1), "short": ema.Power(0.05), "between": ema.Power(0.075), "long": ema.Power(0.15)}
    averages = {name: next(walk(1))[1] for name in profiles}
    update = jax.jit(ema.update, static_argnums=2)
    with posthoc.Snapshots(folder, {"seed": 3}, profiles, every, averages=("ema", "short"), **options) as snapshots:
        for step, params in walk(steps):
            averages = {name: update(averages[name], params, profile, step) for name, profile in profiles.items()}
            snapshots.offer(step, TrainState(jnp.int32(step), params, (), averages), last=step == steps)
    return averages


def test_snapshots_of_two_averages_give_the_others(tmp_path):
    averages = train(tmp_path, steps=200, every=20)
    config, step, found = posthoc.reconstruct(tmp_path, [0.075, 0.15, 0.1])
    assert config == {"seed": 3} and step == 200
    for tree, name in zip(found, ("between", "long", "ema"), strict=True):
        got, want = np.asarray(tree["a"]["weight"]), np.asarray(averages[name]["a"]["weight"])
        assert np.linalg.norm(got - want) < 1e-2 * np.linalg.norm(want), name
    with pytest.raises(ConfigError, match="no snapshot of step 5: the nearest is 20, give one of the 10 as --step"):
        posthoc.reconstruct(tmp_path, [0.1], step=5)


@pytest.mark.parametrize(("step", "says"), [
    (5, "the nearest is 10,"), (15, "the nearest are 10 and 20,"), (29, "the nearest are 20 and 30,"),
    (425, "the nearest is 30,"), (0, "the nearest is 10,")])
def test_a_step_without_a_snapshot_is_refused_with_the_nearest(three, step, says):
    with pytest.raises(ConfigError, match=f"there is no snapshot of step {step}: {says} give one of the 3 as --step"):
        posthoc.reconstruct(three, [0.1], step=step)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The folder of a run of 30 steps with a snapshot every 10."""
    folder = tmp_path_factory.mktemp("three")
    train(folder, steps=30, every=10)
    return folder


def test_a_step_with_a_snapshot_ends_the_average_there(three):
    at = {step: posthoc.reconstruct(three, [0.1], step=step) for step in (10, 20, 30)}
    assert [step for _, step, _ in at.values()] == [10, 20, 30]
    first, last = (at[step][2][0]["a"]["weight"] for step in (10, 30))
    assert not np.allclose(first, last)
    np.testing.assert_array_equal(posthoc.reconstruct(three, [0.1])[2][0]["a"]["weight"], last)


def test_a_folder_of_snapshots_without_one_says_so(tmp_path):
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(ConfigError, match="holds no snapshots yet"):
        posthoc.reconstruct(tmp_path, [0.1])


def test_a_damaged_snapshot_is_named_and_can_be_done_without(tmp_path):
    train(tmp_path, steps=30, every=10)
    broken = tmp_path / "snapshots" / "20"
    for path in broken.rglob("*"):
        if path.is_file() and "ema" in path.parts:
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ConfigError, match="snapshot 20 of .* does not read .*: move it away"):
        posthoc.reconstruct(tmp_path, [0.1])
    broken.rename(tmp_path / "away")
    assert posthoc.reconstruct(tmp_path, [0.1])[1] == 30


def test_a_snapshot_of_eight_devices_reads_on_others(tmp_path):
    mesh, kernel = make_mesh(fsdp=8), jnp.arange(32.0).reshape(4, 8)
    params = {"a": jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(None, "fsdp")))}
    with posthoc.Snapshots(tmp_path, {}, {"ema": ema.Power(0.1)}, 1) as snapshots:
        snapshots.offer(1, TrainState(jnp.int32(1), params, (), {"ema": params}))
    for path in tmp_path.rglob("_sharding"):                                     # as if the eight were another machine's
        path.write_text(re.sub(r'id\\": (\d)', r'id\\": 10\1', path.read_text()))
    np.testing.assert_array_equal(posthoc.reconstruct(tmp_path, [0.1])[2][0]["a"], kernel)


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    params = {"a": jnp.ones(3)}
    with posthoc.Snapshots(tmp_path, {}, {"ema": ema.Power(0.1)}, 1) as snapshots:
        monkeypatch.setattr(snapshots._manager, "save", full)
        with pytest.raises(ConfigError, match="a snapshot could not be written to .*No space left.*: make room") as error:
            snapshots.offer(1, TrainState(jnp.int32(1), params, (), {"ema": params}))
    assert "\n" not in str(error.value)


def test_parts_without_parameters_stay(tmp_path):
    profiles, empty = {"ema": ema.Power(0.1)}, {"model": {"weight": jnp.ones(3)}, "cond": {}}
    with posthoc.Snapshots(tmp_path, {}, profiles, 1) as snapshots:
        snapshots.offer(1, TrainState(jnp.int32(1), empty, (), {"ema": empty}))
    assert posthoc.reconstruct(tmp_path, [0.2])[2][0]["cond"] == {}


def test_what_is_there_is_kept_and_half_precision_is_stored_as_such(tmp_path):
    train(tmp_path, steps=20, every=10, dtype="float16")
    before = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    train(tmp_path, steps=25, every=10, dtype="float16")                         # resumed and made longer
    assert before == ["10", "20"] and sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["10", "20", "25"]
    assert posthoc.reconstruct(tmp_path, [0.1])[2][0]["a"]["weight"].dtype == np.float32


@pytest.mark.parametrize(("options", "says"), [
    (dict(every=0), "snapshots are of power averages"), (dict(averages=("emma",)), "did you mean 'ema'"),
    (dict(profiles={"ema": ema.Constant(0.9)}), "snapshots are of power averages"),
])
def test_what_cannot_be_kept_is_refused(tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        posthoc.Snapshots(tmp_path, {}, **{"profiles": {"ema": ema.Power(0.1)}, "every": 1, **options})


def test_a_run_without_snapshots_says_how_to_get_them(tmp_path):
    with pytest.raises(ConfigError, match="train with config.snapshots"):
        posthoc.reconstruct(tmp_path, [0.1])
    with pytest.raises(ConfigError, match="leave one out"):
        posthoc.coefficients([1, 1], [0.1, 0.1], [1], [0.1])
