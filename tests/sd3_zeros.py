"""A single file of Stable Diffusion 3 of any size, of zeros in bfloat16, which takes no room: to measure memory."""
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.mmdit import preset
from diffusion_jax.pretrained import sd3_export, sd3_mmdit, vae
from diffusion_jax.pretrained.package import WEIGHTS
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.train.state import task_of

TOWER = dict(name="diffusion_jax.models.clip:TextTower", vocab=514, context=77, width=64, layers=2, heads=1, hidden=96)


def page(**size):
    """The page of Stable Diffusion 3 medium with two tiny text encoders and without T5; `size` changes its network."""
    autoencoder = dict(name="diffusion_jax.models.vae:KL", channels=3, latent=16, inner=16, width=128,
                       mults=(1, 2, 4, 4), depth=2)
    first = dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", model=autoencoder, scale=1.5305, shift=0.0609,
                 shape=(1024, 1024, 3))
    cond = dict(name="diffusion_jax.models.sd3_text:SD3Text", width=4096, clip_l=TOWER | dict(features=768, act="quick_gelu"),
                clip_g=TOWER | dict(features=1280, act="gelu"), t5=None)
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", cond=cond, first_stage=first, shape=(128, 128, 16),
        process=dict(name="diffusion_jax.diffusion.process:Flow", shift=3.0),
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"),
    )
    return dict(model=dict(name="diffusion_jax.models.mmdit:MMDiT", **preset("sd3-medium"), scan=True) | size, task=task)


def write(file, **size):
    """Writes the file; returns the number of its weights, the table of positions left out."""
    spec = page(**size)
    task = task_of(spec)
    batch = {"image": jnp.zeros((1, 16, 16, 16)), "tokens": jnp.zeros((1, task.cond.length), jnp.int32)}

    def start(key, batch):
        cond = {"seq": jnp.zeros((1, 1, 4096)), "vec": jnp.zeros((1, 2048))}
        return {"model": task.model.init(key, batch["image"], jnp.zeros(1), cond), "cond": task.cond.init(key, batch)}

    params = {name: part["params"] for name, part in shapes_of(start, jax.random.key(0), batch).items()}
    params["first_stage"] = {"model": vae.shapes(task.first_stage.model)}
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params)
    for name, side in (("quant", 32), ("post_quant", 16)):
        zeros["first_stage"]["model"][name] = {"kernel": np.eye(side, dtype=np.float32), "bias": np.zeros(side, np.float32)}
    weights = {key: value.shape for key, value in sd3_export.write(spec, zeros).files[WEIGHTS].items()}
    _write(Path(file), weights, {f"model.diffusion_model.{sd3_mmdit.POSITIONS}": sd3_mmdit.position_table(task.model)})
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _write(file, shapes, values):
    """A .safetensors file of zeros with holes, but for some values."""
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for key, value in values.items():
            out.seek(8 + len(text) + header[key]["data_offsets"][0])
            out.write(value.astype(jnp.bfloat16).tobytes())
        out.truncate(8 + len(text) + end)
