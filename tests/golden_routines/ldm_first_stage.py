"""CompVis's first stages and what trains them. Official images are NCHW, ours NHWC."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.replay import nchw, nhwc

from diffusion_jax.build import build
from diffusion_jax.models import gan
from diffusion_jax.models.gan import Discriminator
from diffusion_jax.models.lpips import LPIPS, VGG
from diffusion_jax.models.vae import Autoencoder, Posterior
from diffusion_jax.nn.conv import convolve
from diffusion_jax.pretrained import perceptual
from diffusion_jax.pretrained import vae as pretrained
from diffusion_jax.tasks.autoencoder_loss import Losses
from diffusion_jax.types import Array, Params

Found = dict[str, Any]


def official(images: dict[str, Array]) -> Found:
    """Images and latents as they are officially, everything else as it is."""
    return {name: nchw(value) if np.ndim(value) == 4 else value for name, value in images.items()}


def apply(model: Autoencoder, params: Params, method: str, *args: Array) -> Any:
    return model.apply({"params": params}, *args, method=method)


def autoencoder_kl(case: Case) -> Found:
    """Posterior, its draws, and what the decoder makes of them."""
    c = case.config
    model = build(pretrained.config(c["ddconfig"], c["embed_dim"]))
    return first_stage(case, model, pretrained.convert(case.weights, model))


def diffusers_autoencoder_kl(case: Case) -> Found:
    """The same model with the names of diffusers."""
    model = build(pretrained.diffusers_config(case.config["kwargs"]))
    return first_stage(case, model, pretrained.convert(case.weights, model))


def first_stage(case: Case, model: Autoencoder, params: Params) -> Found:
    """All that is asked of a KL autoencoder."""
    @jax.jit
    def run(params: Params, inputs: dict[str, Array]) -> Found:
        p, seen = model.apply({"params": params}, inputs["image"], method="encode", capture_intermediates=True)
        drawn = p.sample(inputs["noise"])
        decoded = apply(model, params, "decode", jnp.concatenate([drawn, inputs["z"], p.mean]))
        sample, z, mode = jnp.split(decoded, 3)
        return {
            "moments": seen["intermediates"]["quant"]["__call__"][0],
            "mean": p.mean, "logvar": p.logvar, "std": p.std, "kl": p.kl(), "nll": p.nll(drawn), "sample": drawn,
            "decoded_sample": sample, "decoded_z": z, "mode_reconstruction": mode,
        }

    return official(run(params, {name: nhwc(x) for name, x in case.inputs.items()}))


def vqmodel(case: Case) -> Found:
    """Codes, losses and their gradients; the interface of latent diffusion quantises in its decoder."""
    c, inputs = case.config, case.inputs
    model = build(pretrained.config(c["ddconfig"], c["embed_dim"], c["n_embed"]) | {"legacy": True})
    params = pretrained.convert(case.weights, model)

    @jax.jit
    def run(params: Params, image: Array, h: Array, code: Array) -> Found:
        prequant = apply(model, params, "encode", image).mean
        q = apply(model, params, "quantize", prequant)
        z = jnp.stack([q.z, h, apply(model, params, "quantize", h).z])
        decoded, raw, snapped = apply(model, params, "draw", z.reshape(-1, *h.shape[1:]))[0].reshape(3, *image.shape)
        nearest = jnp.sort(apply(model, params, "distances", prequant), axis=-1)

        def straight(h: Array) -> Array:
            return jnp.sum(apply(model, params, "quantize", h).z * direction)

        def loss(h: Array, codebook: Array) -> Array:
            return apply(model, params | {"codebook": codebook}, "quantize", h).loss

        direction = h
        grad_z, grad_codebook = jax.grad(loss, argnums=(0, 1))(prequant, params["codebook"])
        return {
            "prequant": prequant, "quant": q.z, "emb_loss": q.loss, "indices": q.index, "decoded": decoded,
            "decoded_h": snapped, "decoded_h_no_quant": raw,
            "codebook_entry": apply(model, params, "lookup", code), "argmin_margin": jnp.min(nearest[..., 1] - nearest[..., 0]),
            "grad_emb_loss_z": grad_z, "grad_emb_loss_codebook": grad_codebook,
            "grad_straight_through": jax.grad(straight)(prequant),
        }

    found = official(run(params, nhwc(inputs["image"]), nhwc(inputs["h"]), inputs["code"]))
    index = np.asarray(found["indices"], np.int64)
    return found | {"indices": index if c.get("sane_index_shape", False) else index.reshape(-1)}


def load_discriminator(case: Case, kwargs: dict[str, Any], prefix: str = "") -> tuple[Discriminator, Params, gan.Stats]:
    weights = {key.removeprefix(prefix): w for key, w in case.weights.items() if key.startswith(prefix)}
    norm = "act" if kwargs.get("use_actnorm", False) else "batch"
    model = Discriminator(kwargs.get("ndf", 64), kwargs.get("n_layers", 3), norm)
    return model, *perceptual.discriminator(weights, model)


def discriminator(case: Case) -> Found:
    """Logits in evaluation and training, all losses, and what the norms learn of the data."""
    model, params, stats = load_discriminator(case, case.config["kwargs"])
    batch, real, fake = case.config["run"]["batch"], nhwc(case.inputs["real"]), nhwc(case.inputs["fake"])

    @jax.jit
    def run(params: Params, stats: gan.Stats, real: Array, fake: Array) -> Found:
        logits = [model.apply({"params": params}, x, stats)[0] for x in (real, fake)]
        trained, seen = model.apply({"params": params}, real)
        weight = jnp.linspace(0.5, 1.5, batch)
        found = {
            "logits_real": logits[0], "logits_fake": logits[1], "hinge": gan.hinge(*logits), "vanilla": gan.vanilla(*logits),
            "g_loss": gan.generator(logits[1]), "hinge_exemplar": gan.hinge(*logits, weight), "train_logits_real": trained,
        }
        if stats:
            after = gan.moved(stats, seen)["norm_1"]
            found |= {"running_mean_after": after["mean"], "running_var_after": after["var"]}
        return found

    found = run(params, stats, real, fake)
    found["adopt_weight"] = np.float32([gan.started(0.8, step, 50001) for step in (0, 50000, 50001, 60000)])
    if model.norm == "act":
        first, fitted = initialised(model, params, jnp.asarray(real))
        norm = {f"init_{name}": jnp.reshape(fitted[name], (1, 1, 1, -1)) for name in ("loc", "scale")}
        found |= {"train_init_logits_real": first} | norm
    return official(found)


def initialised(model: Discriminator, params: Params, real: Array) -> tuple[Array, Params]:
    """The logits after every norm has been fitted to the data in turn, and the first norm's parameters."""
    for i in range(1, model.depth + 1):
        _, seen = model.apply({"params": params}, real, capture_intermediates=True)
        params = params | {f"norm_{i}": gan.fitted(seen["intermediates"][f"conv_{i}"]["__call__"][0])}
    return model.apply({"params": params}, real)[0], params["norm_1"]


def lpips(case: Case) -> Found:
    """The distance, its gradient, the first and the last features."""
    model = LPIPS(case.config["vgg_base_width"])
    params = perceptual.lpips(case.weights, model)
    a, b = nhwc(case.inputs["a"]), nhwc(case.inputs["b"])

    @jax.jit
    def run(a: Array, b: Array) -> Found:
        features = VGG(model.width).apply({"params": params["vgg"]}, a)

        def distance(a: Array) -> tuple[Array, Array]:
            each = model.apply({"params": params}, a, b)
            return jnp.sum(each), each

        grad, each = jax.grad(distance, has_aux=True)(a)
        same = model.apply({"params": params}, a, a)
        return {
            "distance": each[:, None, None, None], "distance_same": same[:, None, None, None], "grad_a": grad,
            "relu1_2": features[0], "relu5_3": features[4],
        }

    return official(run(a, b))


def autoencoder_loss(case: Case) -> Found:
    """Both losses and their gradients before and after the discriminator's start, with a convolution as the last layer."""
    c, kwargs = case.config, case.config["kwargs"]
    kl = c["class"] == "LPIPSWithDiscriminator"
    options = {"ndf": kwargs.get("disc_ndf", 64), "n_layers": kwargs.get("disc_num_layers", 3)}
    options["use_actnorm"] = kwargs.get("use_actnorm", False)
    disc, disc_params, stats = load_discriminator(case, options, "discriminator.")
    perceptual_weights = {key.removeprefix("perceptual_loss."): w for key, w in case.weights.items()}
    model = LPIPS(c["vgg_base_width"])
    frozen = perceptual.lpips({k: w for k, w in perceptual_weights.items() if k.startswith(("net.", "lin"))}, model)
    losses = Losses(
        disc, model, "sum" if kl else "mean", kwargs.get("pixel_loss", "l1"), kwargs.get("perceptual_weight", 1.0),
        kwargs.get("disc_loss", "hinge"), kwargs.get("disc_weight", 1.0), kwargs.get("disc_factor", 1.0), kwargs["disc_start"],
    )
    logvar = case.weights.get("logvar", 0.0)
    images = {name: nhwc(x) for name, x in case.inputs.items() if np.ndim(x) == 4}
    kernel = jnp.asarray(case.inputs["last_layer"]).transpose(2, 3, 1, 0)

    def last(seen: Array, kernel: Array) -> Array:
        return convolve((1, 1), seen, kernel)

    def extra() -> tuple[Array, float]:
        if not kl:
            return jnp.asarray(case.inputs["codebook_loss"]), kwargs.get("codebook_weight", 1.0)
        posterior = Posterior(*np.split(nhwc(case.inputs["moments"]), 2, -1))
        return jnp.mean(posterior.kl()), kwargs.get("kl_weight", 1.0)

    term, term_weight = extra()

    @jax.jit
    def run(step: Array) -> tuple[Found, Found, Array, Array, Array]:
        def generator(kernel: Array) -> tuple[Array, Found]:
            loss, logs = losses.generator(
                last, images["features"], kernel, images["inputs"], disc_params, frozen, step, logvar, stats)
            return loss + term_weight * term, logs

        (loss, logs), grad = jax.value_and_grad(generator, has_aux=True)(kernel)
        y = last(images["features"], kernel)

        def against(params: Params) -> tuple[Array, Found]:
            return losses.discriminator(images["inputs"], y, params, step, stats)

        (_, disc_logs), grad_disc = jax.value_and_grad(against, has_aux=True)(disc_params)
        return loss, logs | disc_logs, grad, grad_disc["conv_0"]["kernel"], y

    found: Found = {}
    for step in c["run"]["steps"]:
        loss, logs, grad, grad_disc, y = run(step)
        named = logs | {"total_loss": loss, "logvar": logvar, "p_loss": logs["perceptual"]}
        named["kl_loss" if kl else "quant_loss"] = term
        found |= {f"step{step}/log/{name}": value for name, value in named.items()}
        found |= {f"step{step}/loss": loss, f"step{step}/d_loss": logs["disc_loss"]}
        found |= {f"step{step}/{name}": g.transpose(3, 2, 0, 1) for name, g in (
            ("grad_last_layer", grad), ("grad_disc_main0", grad_disc))}
        found["reconstructions"] = nchw(y)
    return found
