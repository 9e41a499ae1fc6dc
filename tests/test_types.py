"""The types: what is a process, what JAX sees of them, and the defaults."""
import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.diffusion import process, samplers
from diffusion_jax.types import Prediction, Process, Sampler, Scales, TrainState


@pytest.mark.parametrize("kind", [process.DDPM, process.Cosine, process.EDM, process.Flow])
def test_every_process_is_one(kind):
    assert isinstance(kind(), Process)
    assert not isinstance(samplers.ddim(kind()), Process)


def test_a_prediction_is_a_tree_of_what_it_has():
    p = Prediction(jnp.ones(2), grad=jnp.zeros(2))
    assert len(jax.tree.leaves(p)) == 2 and len(jax.tree.leaves(Prediction(jnp.ones(2)))) == 1
    halved = jax.jit(lambda p: jax.tree.map(lambda x: x / 2, p))(p)
    assert halved.x0.tolist() == [0.5, 0.5] and halved.eps is None and halved.logvar is None


def test_a_state_names_its_parts_and_remembers_nothing_by_default():
    states = [TrainState(jnp.int32(0), {"a": jnp.ones(1)}, (), {"slow": {"a": jnp.zeros(1)}}) for _ in range(2)]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(states[0])]
    assert paths == [".step", ".params['a']", ".ema['slow']['a']"]
    assert states[0].memory == {} and states[0].memory is not states[1].memory


def test_samplers_and_scales_are_taken_apart_by_place():
    init, step = Sampler(lambda x, steps: (), lambda *given: given)
    assert init(0, 3) == () and step(1, 2) == (1, 2)
    assert Scales(1, 2, 3, 4)._asdict() == {"in_": 1, "noise": 2, "skip": 3, "out": 4}
