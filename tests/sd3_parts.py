"""A tiny Stable Diffusion 3 with random weights, as tests of its import and of its export have it."""
import jax
import jax.numpy as jnp
import numpy as np
from exports import filled

from diffusion_jax.pretrained import vae
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.train.state import task_of

CLIP = dict(name="diffusion_jax.models.clip:TextTower", vocab=514, context=8, width=64, layers=1, heads=1, hidden=96)
T5 = dict(name="diffusion_jax.models.t5:T5Encoder", vocab=30, width=130, layers=2, heads=2, head_channels=4, hidden=16, scan=True)
SIDE = 4


def page(t5=True):
    """The sections of a page: each text encoder with what tells it from the others, a dual block, a plain one and the last."""
    autoencoder = dict(name="diffusion_jax.models.vae:KL", channels=3, latent=4, inner=4, width=32, mults=(1, 2), depth=1)
    first = dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", model=autoencoder, scale=1.5305, shift=0.0609,
                 shape=(2 * SIDE, 2 * SIDE, 3))
    cond = dict(
        name="diffusion_jax.models.sd3_text:SD3Text", clip_l=CLIP | dict(features=7, act="quick_gelu"),
        clip_g=CLIP | dict(features=9, act="gelu"), t5=T5 if t5 else None, width=130, context=8, t5_context=256,
    )
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", cond=cond, first_stage=first, shape=(SIDE, SIDE, 4),
        process=dict(name="diffusion_jax.diffusion.process:Flow", shift=3.0),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"), times=dict(name="diffusion_jax.diffusion.times:LogitNormal"),
    )
    model = dict(name="diffusion_jax.models.mmdit:MMDiT", patch=2, width=16, depth=3, heads=2, channels=4, qk_norm="rms", dual=1,
                 grid=8, step=0.25, scan=True)
    return dict(model=model, task=task, data=dict(decode=dict(name="diffusion_jax.data.image:Decode", size=2 * SIDE)),
                sample=dict(sampler="euler", times="flow_match", steps=28, guidance=7.0))


def params_of(page):
    """Random parameters of a page, with those of its first stage, whose maps between the halves do nothing."""
    task = task_of(page)
    batch = {"image": jnp.zeros((1, 2 * SIDE, 2 * SIDE, 3)), "tokens": jnp.zeros((1, task.cond.length), jnp.int32)}
    # Large enough for a text to show in a picture.
    params = jax.tree.map(lambda leaf: 6 * leaf, filled(shapes_of(task.init, jax.random.key(0), batch)))
    first = filled(vae.shapes(task.first_stage.model))
    for name, width in (("quant", 8), ("post_quant", 4)):
        first[name] = {"kernel": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}
    return params | {"first_stage": {"model": first}}
