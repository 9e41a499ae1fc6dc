"""What metrics see of an image: resizers, the input of each network, the FID Inception. Official networks are NCHW."""
from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from golden_case import Case
from golden_routines.replay import nchw, nhwc

from diffusion_jax.data import resize as resizers
from diffusion_jax.models.inception import Features, Inception, Maps
from diffusion_jax.pretrained import inception as pretrained
from diffusion_jax.types import Array, Params

Found = dict[str, Any]


@jax.jit
def _see(params: Params, x: Array) -> tuple[Features, Maps]:
    out, seen = Inception().apply({"params": params}, x, capture_intermediates=lambda module, _: module.name == "trunk")
    return out, seen["intermediates"]["trunk"]["__call__"][0]


def see(params: Params, x: Array) -> tuple[Features, Maps]:
    """Features and maps, image by image: one program for every case."""
    found = [jax.device_get(_see(params, x[i : i + 1])) for i in range(len(x))]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *found)


def inception_features(case: Case) -> Found:
    """The network on images in [0, 1]."""
    c, x = case.config, nhwc(case.inputs["x"])
    x = resizers.bilinear(x, 299, 299) if c["resize_input"] else x
    x = 2 * x - 1 if c["normalize_input"] else x
    out, maps = see(pretrained.convert(case.weights), x)
    return dict(
        block0_64=out.f64, block1_192=out.f192, block2_768=out.f768, pool3=out.pool3, logits=out.logits,
        logits_unbiased=out.unbiased, sfid_spatial_2023=out.spatial,
        block0_patch=nchw(maps.pool1)[:, :8, 10:14, 10:14], block2_patch=nchw(maps.mixed6)[:, ::64, 3:7, 3:7],
    )


def inception_pipelines(case: Case) -> Found:
    """uint8 images to features under each convention."""
    params, x = pretrained.convert(case.weights), nhwc(case.inputs["x"])
    outs = {name: see(params, resizers.prepare(x, name))[0] for name in resizers.CONVENTIONS}
    tf = outs["tensorflow"]
    return dict(
        tf_64=tf.f64, tf_192=tf.f192, tf_768=tf.f768, tf_2048=tf.pool3, tf_logits=tf.logits, tf_logits_unbiased=tf.unbiased,
        pytorchfid_2048=outs["pytorch_fid"].pool3, clean_2048=outs["clean_fid"].pool3,
    )


def resize(case: Case) -> Found:
    """Every resizer, in the range of uint8, and the three conventions at the size of Inception, brought back to that range."""
    ways = dict(
        tf1_bilinear=resizers.bilinear_tensorflow, pytorch_bilinear=resizers.bilinear, clean_pil_bicubic_float=resizers.clean,
        pil_bilinear_float=partial(resizers.antialiased, method="linear"), torch_bicubic_antialias=resizers.antialiased,
        torch_bicubic_noaa=resizers.bicubic,
    )
    conventions = dict(tf1=("tensorflow", 128, 128), clean=("clean_fid", 128, 128), pytorch=("pytorch_fid", 127.5, 127.5))

    @jax.jit
    def run(images: dict[str, Array]) -> Found:
        found = {}
        for name, c in case.config.items():
            x = images[f"im{c['image']}"][None].astype(np.float32)
            found |= {f"{name}_{way}": function(x, *c["target_hw"])[0] for way, function in ways.items()}
        for name, image in images.items():
            for way, (convention, factor, middle) in conventions.items():
                seen = resizers.prepare(image[None], convention)[0, ::13, ::17]
                found[f"{name.removeprefix('im')}_299_{way}"] = seen * factor + middle
        return found

    found = run(case.inputs)
    for name, c in case.config.items():
        found[f"{name}_pil_bicubic_uint8"] = resizers.bicubic_pil(case.inputs[f"im{c['image']}"], *c["target_hw"])
    return found


def dinov2_preprocess(case: Case) -> Found:
    """The input of FD-DINOv2 by both resizers."""
    found = {}
    for resizer in ("torch", "pil"):
        x = nchw(np.asarray(resizers.prepare_dinov2(case.inputs["im"][None], resizer, case.config["size"])))[0]
        found |= {resizer: x[:, ::9, ::7], f"{resizer}_sum": np.sum(x, dtype=np.float64)}
    return found
