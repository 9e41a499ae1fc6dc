"""The token transformer: causality, cache against no cache, sizes of presets, number types. Its numbers are pinned by goldens."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dalle import DALLE, layer_kinds, preset
from diffusion_jax.pipelines.dalle import Draw, draw

TINY = dict(text_codes=12, image_codes=9, text_length=4, grid=4, width=16, depth=3, heads=2, kernel=3)
KEY = jax.random.key(0)
TEXT, IMAGE = jnp.array([[1, 2, 0, 0], [3, 4, 5, 0]]), jax.random.randint(KEY, (2, 16), 0, 9)


def network(**options):
    """A network with random weights large enough to matter."""
    model = DALLE(**{**TINY, **options})
    shapes = jax.eval_shape(model.init, KEY, TEXT, IMAGE)["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: np.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)


FORMS = {"start": dict(start=0), "dense": dict(layout="dense", axial=False, joint=False, pad=False), "plain": {}}
each = pytest.mark.parametrize("options", [pytest.param(form, id=name, marks=() if name == "start" else pytest.mark.slow)
                                           for name, form in FORMS.items()])


@each
def test_logits_depend_on_earlier_tokens_only(options):
    model, params = network(**options)
    run = jax.jit(lambda image: model.apply({"params": params}, TEXT, image))
    changed = IMAGE.at[:, 7].set((IMAGE[:, 7] + 1) % 9)
    (text, image), (text2, image2) = run(IMAGE), run(changed)
    np.testing.assert_array_equal(text, text2)
    np.testing.assert_array_equal(image[:, :8], image2[:, :8])
    assert np.abs(image[:, 8] - image2[:, 8]).max() > 1e-3


@each
def test_cached_logits_are_the_uncached_ones(options):
    """The proof line: within 1e-5, from the text alone and from a completed half."""
    model, params = network(**options)
    bound = {"params": params}
    _, want = jax.jit(lambda: model.apply(bound, TEXT, IMAGE))()
    step = jax.jit(lambda *a: model.apply(bound, *a, method="step"))
    for given in (0, 8):
        logits, cache = jax.jit(lambda n=given: model.apply(bound, TEXT, IMAGE[:, :n], method="prefill"))()
        found = [logits]
        for place in range(given, 15):
            logits, cache = step(IMAGE[:, place], jnp.int32(place), cache)
            found.append(logits)
        np.testing.assert_allclose(np.stack(found, 1), want[:, given:], atol=1e-5)


@pytest.mark.slow
def test_blocks_give_what_masks_give():
    model, params = network(start=0)
    dense, sparse = (jax.jit(lambda m=m: m.apply({"params": params}, TEXT, IMAGE))() for m in
                     (dataclasses.replace(model, sparse=False), dataclasses.replace(model, sparse=True)))
    for a, b in zip(dense, sparse, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_recomputing_layers_changes_nothing():
    model, params = network()
    plain, saved = (jax.jit(jax.grad(lambda p, m=m: jnp.sum(m.apply({"params": p}, TEXT, IMAGE)[1] ** 2)))(params) for m in
                    (model, dataclasses.replace(model, remat=True)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, saved)


@pytest.mark.slow
def test_greedy_draws_are_the_most_likely_tokens_and_guidance_moves_them():
    model, params = network(start=0, depth=2)
    given = IMAGE[:, :4]
    codes = jax.jit(lambda: draw(model, Draw(top_k=1), {"model": params}, TEXT, given, jnp.arange(2), KEY))()
    np.testing.assert_array_equal(codes[:, :4], given)
    _, logits = jax.jit(lambda: model.apply({"params": params}, TEXT, codes))()
    np.testing.assert_array_equal(codes[:, 4:], jnp.argmax(logits, -1)[:, 4:])
    guided = jax.jit(lambda: draw(model, Draw(top_k=1, guidance=4.0), {"model": params}, TEXT, given, jnp.arange(2), KEY, 4.0))()
    assert (guided != codes).any()


def test_layers_follow_the_papers_order():
    assert layer_kinds("dalle", 6) == ("row", "column", "row", "row", "row", "conv")
    assert layer_kinds("rudalle", 6)[-1] == "column" and layer_kinds("rudalle", 5)[-1] == "conv"
    assert layer_kinds("dense", 2) == ("full", "full")
    with pytest.raises(ConfigError, match="did you mean 'dense'"):
        layer_kinds("densee", 2)


@pytest.mark.slow
def test_the_twelve_billion_preset_has_the_papers_size():
    model = preset("12B")
    text, image = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (256, 1024))
    shapes = jax.eval_shape(model.init, KEY, text, image)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 11.9e9 < count < 12.5e9
    assert model.patterns[-1].kind == "conv" and [p.kind for p in model.patterns].count("column") == 16
    texts, images = jax.eval_shape(model.apply, shapes, text, image)
    assert texts.shape == (1, 256, 16640) and images.shape == (1, 1024, 8192)
    with pytest.raises(ConfigError, match="size of DALL-E"):
        preset("13B")


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "layout"), [(9, "dalle"), (8, "dense"), (3, "dalle")])
def test_scanned_layers_are_the_layers_one_by_one(depth, layout):
    model, params = network(depth=depth, layout=layout)
    found = [jax.jit(jax.value_and_grad(lambda p, m=m: jnp.sum(m.apply({"params": p}, TEXT, IMAGE)[1] ** 2)))(params) for m in
             (model, dataclasses.replace(model, scan=True), dataclasses.replace(model, scan=True, remat=True))]
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose((b, c), (a, a), rtol=1e-4, atol=1e-4), *found)


@pytest.mark.slow
def test_scanned_layers_drop_and_are_traced_once():
    model, params = network(depth=9, dropout=0.5, scan=True)
    apply = jax.jit(lambda rngs: model.apply({"params": params}, TEXT, IMAGE, rngs=rngs)[1])
    logits = [apply(rngs) for rngs in ({}, {"dropout": KEY})]
    assert not np.allclose(*logits, atol=1e-3)
    text = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, TEXT, IMAGE)[1])(params))
    assert text.count("= logistic") + text.count("= tanh") <= 5


@pytest.mark.slow
def test_the_twelve_billion_preset_compiles_without_its_weights():
    model = preset("12B", dtype="bfloat16", remat=True, scan=True)
    text, image = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (256, 1024))
    params = jax.eval_shape(model.init, KEY, text, image)
    loss = jax.jit(jax.grad(lambda p, t, i: jnp.mean(model.apply(p, t, i)[1].astype(jnp.float32))))
    assert loss.lower(params, text, image).as_text("stablehlo")


@pytest.mark.slow
def test_gradients_underflow_in_float16_and_not_in_bfloat16():
    """Why the paper scales every block's gradient by itself, and this package does not."""
    def share_lost(dtype):
        model, params = network(depth=2, dtype=dtype)
        def loss(params):
            return jnp.mean(jax.nn.log_softmax(model.apply({"params": params}, TEXT, IMAGE)[1])[..., 0]) * 1e-5

        grads = jax.jit(jax.grad(loss))(params)
        kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads["blocks_0"]) if path[-1].key == "kernel"]
        return np.mean(np.concatenate([np.asarray(leaf).reshape(-1) for leaf in kernels]) == 0)

    assert share_lost("float16") > 0.2
    assert share_lost("bfloat16") < 0.02 and share_lost("float32") < 0.02
