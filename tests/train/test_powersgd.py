"""PowerSGD: what it sends, what it keeps, that nothing is lost over time, and that devices agree."""
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from train_toy import Net, Toy, batch_of, config, train

from diffusion_jax.build import ConfigError, build
from diffusion_jax.train import optim, shard
from diffusion_jax.train.powersgd import RULES, Compressed, PowerState, compressed, powersgd, saving, sent
from diffusion_jax.train.shard import make_mesh
from diffusion_jax.train.state import create
from diffusion_jax.train.step import make_step

PARAMS = {"kernel": jnp.zeros((3, 3, 16, 32)), "dense": jnp.zeros((64, 48)), "bias": jnp.zeros((48,)), "thin": jnp.zeros((64, 4))}


def gradients(seed, rank=None):
    keys = jax.random.split(jax.random.key(seed), len(PARAMS))
    return {name: jax.random.normal(key, leaf.shape) for key, (name, leaf) in zip(keys, PARAMS.items(), strict=True)}


def test_it_sends_as_many_numbers_as_computed():
    assert [name for name, leaf in PARAMS.items() if compressed(leaf.shape, 4)] == ["kernel", "dense"]
    assert sent(PARAMS) == 9 * 16 * 32 + 64 * 48 + 48 + 64 * 4
    assert sent(PARAMS, 4) == 4 * (144 + 32) + 4 * (64 + 48) + 48 + 64 * 4
    assert saving({"w": jnp.zeros((4096, 4096))}, 4) == 512


@pytest.mark.slow
def test_a_gradient_of_low_rank_passes_whole_and_the_rest_later():
    a, b = jax.random.normal(jax.random.key(0), (64, 3)), jax.random.normal(jax.random.key(1), (3, 48))
    method = powersgd(rank=4)
    update = jax.jit(method.update)
    found, state = update({"w": a @ b}, method.init({"w": jnp.zeros((64, 48))}))
    np.testing.assert_allclose(found["w"], a @ b, atol=1e-4)
    g, state, total = gradients(0), method.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for _ in range(60):
        found, state = update(g, state)
        total = jax.tree.map(jnp.add, total, found)
    for name, value in g.items():
        left = np.linalg.norm(total[name] / 60 - value) / np.linalg.norm(value)
        assert left < (0.25 if compressed(value.shape, 4) else 1e-5)
        error = state.error[name]
        np.testing.assert_allclose(total[name] + (error if compressed(value.shape, 4) else 0), 60 * value, atol=2e-3)   # no loss


def test_devices_agree_on_the_mean_gradient():
    """With each device's own gradient: the same update on all of them, which for low rank is the mean."""
    mesh, method = make_mesh(data=2, devices=jax.devices()[:2]), powersgd(rank=4, axis="data")
    a, b = jax.random.normal(jax.random.key(0), (64, 3)), jax.random.normal(jax.random.key(1), (2, 3, 48))
    grads = jnp.einsum("nr,drm->dnm", a, b)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"),), out_specs=P("data"))
    def update(own):
        state = PowerState({"w": jnp.zeros((64, 48))}, method.init({"w": own[0]}).q)
        return method.update({"w": own[0]}, state)[0]["w"][None]

    found = jax.jit(update)(grads)
    np.testing.assert_allclose(found, np.broadcast_to(grads.mean(0), found.shape), atol=1e-4)


@pytest.mark.slow
def test_a_regression_converges_in_rank_four():
    x = jax.random.normal(jax.random.key(0), (256, 32))
    y = jnp.tanh(x @ jax.random.normal(jax.random.key(1), (32, 24)))
    start = {"a": jax.random.normal(jax.random.key(2), (32, 64)) * 0.1, "b": jax.random.normal(jax.random.key(3), (64, 24)) * 0.1}

    def loss(p):
        return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - y) ** 2)

    def trained(method):
        def step(carry, _):
            p, state = carry
            updates, state = method.update(jax.grad(loss)(p), state, p)
            return (optax.apply_updates(p, updates), state), None

        return loss(jax.jit(lambda p: jax.lax.scan(step, (p, method.init(p)), None, 1200)[0][0])(start))

    plain, low = trained(optax.adam(3e-3)), trained(optax.chain(powersgd(4), optax.adam(3e-3)))
    assert plain < 0.04 and low < 2 * plain                                         # 0.031 and 0.043, from 1.0


def begun(mesh, optimizer, task, rules=shard.REPLICATE, **options):
    """(step, state) of a run on a mesh."""
    if isinstance(optimizer, Compressed):
        optimizer, rules = dataclasses.replace(optimizer, shards=mesh.shape["data"]), (*RULES, *rules)
    make = functools.partial(create, task, optimizer, {}, jax.random.key(1), {})
    shardings = shard.shardings(mesh, jax.eval_shape(make), rules)
    return make_step(task, optimizer, {}, mesh, shardings, **options), jax.jit(make, out_shardings=shardings)()


def batch_on(mesh, number=0, size=32):
    return jax.device_put(batch_of(number, size), shard.batch_sharding(mesh))


def collective_bytes(hlo):
    """Bytes of the results of all collectives in an optimised program."""
    found = re.findall(r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", hlo)
    arrays = [shape for result in found for shape in re.findall(r"(?:f32|s32|u32)\[([\d,]*)\]", result)]
    return 4 * sum(int(np.prod([int(n) for n in shape.split(",") if n], initial=1)) for shape in arrays)


def test_only_what_is_counted_crosses_the_data_axis():
    """Eight devices: the bytes of all collectives in the compiled step are those of `sent`, and of the loss and one metric."""
    mesh, task = make_mesh(data=8), Toy(Net(width=64, depth=1))
    for rank in (0, 2):
        step, state = begun(mesh, optim.optimizer("adamw", lr=1e-2, clip=1.0, powersgd=rank), task)
        params = state.params
        hlo = step.lower(state, None, batch_on(mesh)).compile().as_text()
        assert collective_bytes(hlo) == 4 * (sent(params, rank or None) + 2)
    assert saving(params, 2) > 8


def by_hand(error, q, grads):
    """(1) to (4) in NumPy: gradients [shards, ...] of one matrix -> (mean, errors, q)."""
    m = grads.reshape(len(grads), -1, grads.shape[-1]) + error
    p, _ = np.linalg.qr(np.mean(m @ q, axis=0))
    q = np.mean(np.swapaxes(m, 1, 2) @ p, axis=0)
    return (p @ q.T).reshape(grads.shape[1:]), m - (p @ q.T)[None], q


@pytest.mark.parametrize("sizes,accumulate", [pytest.param((4, 1, 1), 1, marks=pytest.mark.slow), ((2, 2, 1), 2)])
def test_every_shard_keeps_its_own_error(sizes, accumulate):
    """Two updates of plain descent against (1) to (4) by hand, each shard with its rows and its error."""
    mesh, task, rank = make_mesh(*sizes, devices=jax.devices()[:4]), Toy(Net(width=32), noise=0.0), 2
    step, state = begun(mesh, Compressed(optax.sgd(0.1), rank), task, ((".*", "fsdp"),), accumulate=accumulate)
    params, power = jax.device_get((state.params, state.opt_state["powersgd"]))
    grad = jax.jit(jax.vmap(jax.grad(lambda p, batch: task.loss(p, None, batch, None, True)[0]), in_axes=(None, 0)))
    for number in range(2):
        rows = jax.tree.map(lambda x: x.reshape(sizes[0], -1, *x.shape[1:]), batch_of(number, 32))
        leaves, tree = jax.tree.flatten(params)
        done = [by_hand(e, q, np.asarray(g)) if compressed(w.shape, rank) else (np.mean(g, 0), e, q)
                for w, e, q, g in zip(leaves, *map(jax.tree.leaves, (power.error, power.q, grad(params, rows))), strict=True)]
        mean, error, q = (jax.tree.unflatten(tree, part) for part in zip(*done, strict=True))
        params, power = jax.tree.map(lambda w, g: w - 0.1 * g, params, mean), PowerState(error, q)
        state, _ = step(state, None, batch_on(mesh, number))
        kept = state.opt_state["powersgd"]
        got, want = (state.params, kept.error, kept.q), (params, error, q)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
    inner = state.opt_state["powersgd"].error["inner"]["kernel"]
    assert {part.data.shape for part in inner.addressable_shards} == {(1, 64, 32)}


@pytest.mark.slow
def test_a_run_from_its_config_resumes_bit_for_bit(tmp_path):
    options = dict(optimizer=build({"name": "diffusion_jax.train.optim:optimizer", "method": "adam", "powersgd": 2}), devices=2)
    _, whole = train(tmp_path / "whole", **options)
    train(tmp_path / "parts", stop_at=8, **options)
    _, resumed = train(tmp_path / "parts", **options)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert np.abs(whole.opt_state["powersgd"].error["inner"]["kernel"]).max(axis=(1, 2)).min() > 0


@dataclasses.dataclass(frozen=True)
class Counting(Toy):
    """Remembers counts, as importance sampling does."""

    def memory(self):
        return {"counts": jnp.zeros(3, jnp.int32)}


def test_counts_are_not_averaged_over_shards():
    make = functools.partial(make_step, Counting(Net()), Compressed(optax.sgd(0.1), 2), {})
    with pytest.raises(ConfigError, match="leave out importance sampling"):
        make(make_mesh(data=2, devices=jax.devices()[:2]), None)
    make(make_mesh(data=1, devices=jax.devices()[:1]), None)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_run_moves_to_another_number_of_shards(tmp_path, devices):
    still = {"task": config()["task"] | {"noise": 0.0}}                             # noise is drawn for each shard
    options = dict(optimizer=Compressed(optax.sgd(0.1), 2), config=still)
    _, whole = train(tmp_path / "whole", devices=2, **options)
    train(tmp_path / "parts", stop_at=9, devices=2, **options)
    _, moved = train(tmp_path / "parts", devices=devices, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved.params, whole.params)


def test_it_is_an_optimiser_of_a_page():
    method = build({"name": "diffusion_jax.train.optim:optimizer", "method": "adam", "powersgd": 4})
    state = jax.eval_shape(method.init, PARAMS)
    assert min(leaf.size for leaf in jax.tree.leaves(state)) > 0                    # a checkpoint takes no empty array
    assert state["powersgd"].q["dense"].shape == (48, 4) and state["powersgd"].error["kernel"].shape == (1, 144, 32)
    with pytest.raises(ConfigError, match="at least 1"):
        powersgd(0)
    with pytest.raises(ConfigError, match="leave it out"):
        optim.partition({"gen": method})
