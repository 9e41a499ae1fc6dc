"""The train step against the same maths by hand, over devices and microbatches."""
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from train_toy import Net, Toy, batch_of

from diffusion_jax.build import ConfigError
from diffusion_jax.train import ema, optim, shard
from diffusion_jax.train.state import create
from diffusion_jax.train.step import _rates, gradients, make_step, split
from diffusion_jax.types import TrainState

EMAS = {"slow": ema.Constant(0.9), "power": ema.Power(0.1)}
RULES = ((r"inner/kernel$", ("fsdp", "tensor")), (".*", "fsdp"))
OPTIMIZER = optim.optimizer("adamw", lr=1e-2, clip=1.0)
SEED = 3


def start(task, mesh, rules=shard.REPLICATE, optimizer=OPTIMIZER):
    """(step, state) on a mesh."""
    make = functools.partial(create, task, optimizer, EMAS, jax.random.key(1), {})
    shardings = shard.shardings(mesh, jax.eval_shape(make), rules)
    return make_step(task, optimizer, EMAS, mesh, shardings, seed=SEED), jax.jit(make, out_shardings=shardings)()


def batches(mesh, steps, size=32):
    for number in range(steps):
        yield jax.device_put(batch_of(number, size), shard.batch_sharding(mesh))


def run(task, mesh, steps=5, **options):
    step, state = start(task, mesh, **options)
    for batch in batches(mesh, steps):
        state, metrics = step(state, None, batch)
    return state, metrics


def one():
    return shard.make_mesh(devices=jax.devices()[:1])


def assert_close(got, want, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol, rtol=0), got, want)


def test_a_step_is_the_maths_of_its_docstring():
    task, mesh = Toy(Net(), noise=0.1), one()
    step, state = start(task, mesh)

    @jax.jit
    def by_hand(state, batch, number):
        key = jax.random.fold_in(jax.random.key(SEED), number)
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(state.params, None, batch, key, True)
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = {name: ema.update(state.ema[name], params, profile, number + 1) for name, profile in EMAS.items()}
        norms = {"grad_norm": grads, "update_norm": updates, "param_norm": params}
        return TrainState(number + 1, params, opt_state, averages), {"loss": loss, "lr": 1e-2} | {
            name: optax.tree.norm(tree) for name, tree in norms.items()}

    for number, batch in enumerate(batches(mesh, 2)):
        want, wanted = by_hand(jax.device_get(state), batch, number)
        state, metrics = step(state, None, batch)
        assert_close(state, want, 1e-6)
        assert_close({name: metrics[name] for name in wanted}, wanted)


def test_state_is_donated_metrics_are_scalars_and_all_is_float32():
    step, state = start(Toy(Net()), one())
    new, metrics = step(state, None, next(batches(one(), 1)))
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.ema, state.opt_state[1])))
    assert set(metrics) == {"loss", "mae", "grad_norm", "update_norm", "param_norm", "lr"}
    assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())
    assert {x.dtype for x in jax.tree.leaves((new.params, new.ema))} == {jnp.dtype("float32")}


def test_eight_devices_equal_one_with_everything_sharded():
    task, mesh = Toy(Net(), noise=0.1), shard.make_mesh(data=2, fsdp=2, tensor=2)
    want, metrics = run(task, one())
    got, sharded_metrics = run(task, mesh, rules=RULES)
    assert_close(got.params, want.params)
    assert_close(got.ema, want.ema)
    assert_close(sharded_metrics, metrics)
    for tree in (got.params, got.ema["slow"], got.opt_state[1].mu):
        kernel = tree["inner"]["kernel"]
        assert {s.data.shape for s in kernel.addressable_shards} == {(2, 8, 8)} and kernel.shape == (2, 16, 16)
        assert {s.data.shape for s in tree["first"]["kernel"].addressable_shards} == {(8, 8)}
    step, state = start(task, mesh, rules=RULES)
    hlo = step.lower(state, None, next(batches(mesh, 1))).compile().as_text()
    assert "all-gather" in hlo and ("reduce-scatter" in hlo or "all-reduce" in hlo)
    assert re.search(r"f32\[8,8\]", hlo) and "f32[32,8]" not in hlo                # [32 / (data fsdp), 8], never the whole batch


def test_the_same_seed_gives_the_same_bits_on_many_devices():
    mesh = shard.make_mesh(data=2, fsdp=2, tensor=2)
    runs = [run(Toy(Net()), mesh, steps=3, rules=RULES)[0] for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *runs)


@dataclasses.dataclass(frozen=True)
class Line:
    """One kernel, which compiles fast; noise = 0 uses no key."""

    noise: float

    def init(self, key, batch):
        return {"inner": {"kernel": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)}, "bias": jnp.ones(8)}

    def loss(self, params, frozen, batch, key, train):
        x = batch["image"] + self.noise * jax.random.uniform(key, batch["image"].shape) if self.noise else batch["image"]
        return jnp.mean((x @ params["inner"]["kernel"] + params["bias"][None] - batch["target"]) ** 2), {"mean": jnp.mean(x)}

    def memory(self):
        return {}

    def project(self, params):
        return params


def gradients_on(mesh, task, batch, key, accumulate, rules=shard.REPLICATE):
    """(loss, metrics, gradient) of the initial parameters."""
    params = task.init(key, {})
    shardings = shard.shardings(mesh, params, rules)
    return jax.jit(lambda params, batch, key: gradients(task, params, None, batch, key, mesh, shardings, accumulate))(
        jax.device_put(params, shardings), jax.device_put(batch, shard.batch_sharding(mesh)), key)


def test_accumulation_changes_nothing_without_keys():
    task, batch, key = Line(0.0), batch_of(0, 32), jax.random.key(0)
    want = gradients_on(one(), task, batch, key, 1)
    assert_close(gradients_on(one(), task, batch, key, 4), want, 2e-6)
    assert_close(gradients_on(shard.make_mesh(data=2, fsdp=2, tensor=2), task, batch, key, 4, RULES), want, 2e-6)


def test_each_microbatch_has_its_own_key_and_rows():
    task, batch, key = Line(0.5), batch_of(0, 32), jax.random.key(2)
    parts = [gradients_on(one(), task, {name: x[a::4] for name, x in batch.items()}, jax.random.fold_in(key, a), 1)
             for a in range(4)]
    assert len({float(part[0]) for part in parts}) == 4
    assert_close(gradients_on(one(), task, batch, key, 4), jax.tree.map(lambda *g: sum(g) / 4, *parts), 2e-6)


def test_microbatches_keep_every_row_on_its_device():
    mesh = shard.make_mesh(data=2, fsdp=2, tensor=2)
    x = jax.device_put(jnp.arange(32.0).reshape(32, 1), shard.batch_sharding(mesh))
    make = jax.jit(lambda x: split(x, 4, mesh))
    got = make(x)
    before = {s.device: set(np.asarray(s.data).ravel()) for s in x.addressable_shards}
    assert {s.device: set(np.asarray(s.data).ravel()) for s in got.addressable_shards} == before
    assert not re.search(r"all-|collective|permute", make.lower(x).compile().as_text())


@pytest.mark.parametrize("size,accumulate", [(12, 4), (16, 3), (8, 2)])
def test_a_batch_that_does_not_divide_raises(size, accumulate):
    mesh = shard.make_mesh(fsdp=2) if size != 16 else one()
    with pytest.raises(ConfigError, match="multiple of accumulate x devices"):
        jax.eval_shape(lambda x: split(x, accumulate, mesh), jnp.zeros((size, 2)))
    with pytest.raises(ConfigError, match="at least 1"):
        make_step(Toy(Net()), OPTIMIZER, EMAS, mesh, None, accumulate=0)


@dataclasses.dataclass(frozen=True)
class OnSphere:
    """Parameters of norm 1; its loss sees the mesh by axis names."""

    def init(self, key, batch):
        return {"w": jnp.full((4, 4), 0.5)}

    def loss(self, params, frozen, batch, key, train):
        assert train
        x = jax.lax.with_sharding_constraint(batch["image"][:, :4], PartitionSpec(("data", "fsdp")))
        return jnp.mean((x @ params["w"] * frozen["scale"] - batch["target"][:, :4]) ** 2), {}

    def memory(self):
        return {}

    def project(self, params):
        return jax.tree.map(lambda w: w / jnp.linalg.norm(w), params)


def test_projection_comes_after_the_update_and_after_the_averages():
    mesh = shard.make_mesh(data=4, fsdp=2)
    step, state = start(OnSphere(), mesh)
    assert abs(np.linalg.norm(state.params["w"]) - 1) < 1e-6
    frozen = shard.replicate({"scale": jnp.float32(2.0)}, mesh)
    state, _ = step(state, frozen, next(batches(mesh, 1)))
    assert abs(np.linalg.norm(state.params["w"]) - 1) < 1e-6
    moved = state.ema["power"]["w"]                            # the first beta of a power average is 0
    assert abs(np.linalg.norm(moved) - 1) > 1e-3
    assert_close(moved / np.linalg.norm(moved), state.params["w"], 1e-6)


def test_the_step_compiles_once():
    mesh = shard.make_mesh(data=2, fsdp=2, tensor=2)
    step, state = start(Toy(Net()), mesh, rules=RULES)
    for batch in batches(mesh, 3):
        state, _ = step(state, None, batch)
    assert step._cache_size() == 1


def test_learning_rates_are_found_and_named():
    params = {"gen": jnp.ones(2), "disc": jnp.ones(2)}
    both = optim.partition({"gen": optim.optimizer("adam", 0.1), "disc": optim.optimizer("lion", 0.2, clip=1.0)})
    assert_close(_rates(both.update(params, both.init(params), params)[1]), {"lr/gen": 0.1, "lr/disc": 0.2}, 1e-7)
    assert_close(_rates(OPTIMIZER.update(params, OPTIMIZER.init(params), params)[1]), {"lr": 1e-2}, 1e-7)
    assert _rates(optax.sgd(0.1).init(params)) == {}


@dataclasses.dataclass(frozen=True)
class Counting(Line):
    """Remembers how many examples it has seen, and trains on that number."""

    def memory(self):
        return {"seen": jnp.zeros((), jnp.int32)}

    def loss(self, params, frozen, batch, key, train):
        loss, metrics = super().loss(params, frozen, batch, key, train)
        seen = frozen["memory"]["seen"] + len(batch["image"])
        return loss * frozen["memory"]["seen"], {**metrics, "memory": {"seen": seen}}


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_memory_goes_from_step_to_step_and_through_microbatches(accumulate):
    mesh = one()
    make = functools.partial(create, Counting(0.0), OPTIMIZER, EMAS, jax.random.key(1), {})
    shardings = shard.shardings(mesh, jax.eval_shape(make))
    step, state = make_step(Counting(0.0), OPTIMIZER, EMAS, mesh, shardings, accumulate), jax.jit(make, out_shardings=shardings)()
    assert state.memory == {"seen": 0}
    losses = []
    for batch in batches(mesh, 3):
        state, metrics = step(state, None, batch)
        losses.append(float(metrics["loss"]))
    assert state.memory == {"seen": 96}
    assert (losses[0] == 0) == (accumulate == 1)                           # later microbatches remember the first
