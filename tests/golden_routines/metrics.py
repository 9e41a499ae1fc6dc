"""Measures from given features: pytorch-fid, clean-fid, ADM's evaluator, EDM2, torch-fidelity, prdc, torchmetrics."""
from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from golden_case import Case
from golden_routines.metrics_network import dinov2_preprocess, inception_features, inception_pipelines, resize  # noqa: F401

from diffusion_jax.metrics import inception_score as scores
from diffusion_jax.metrics import kid as kernel_distance
from diffusion_jax.metrics import prdc
from diffusion_jax.metrics.clip_score import clip_score as clip_scores
from diffusion_jax.metrics.clip_score import cosines
from diffusion_jax.metrics.fid import frechet_distance
from diffusion_jax.metrics.moments import moments

Found = dict[str, Any]


def fid(case: Case) -> Found:
    """Moments of both sets, and the one distance that all implementations approximate."""
    a, b = (moments(case.inputs[name]) for name in ("feats1", "feats2"))
    distance = frechet_distance(a, b)
    found = dict(mu1=a.mean, sigma1=a.cov, mu2=b.mean, sigma2=b.cov, edm2_mu=a.mean, edm2_sigma=a.cov)
    return found | {name: distance for name in case.want if name.startswith("fid_")}


def kid(case: Case) -> Found:
    """The kernel distance on given subsets."""
    c, i = case.config, case.inputs
    x, y = i["feats1"], i["feats2"]
    poly = {**c["poly"], "gamma": None if c["poly"]["gamma"] == "1/D" else c["poly"]["gamma"]}
    polynomial = partial(kernel_distance.polynomial, **poly)
    found = kernel_distance.over_subsets(x, y, zip(i["idx1"], i["idx2"], strict=True), polynomial)
    gaussian = partial(kernel_distance.gaussian, sigma=c["rbf_sigma"])
    rbf = kernel_distance.over_subsets(x, y, zip(i["idx1"], i["idx2"], strict=True), gaussian)
    clean = kernel_distance.over_subsets(x, y, zip(i["cleanfid_idx1"], i["cleanfid_idx2"], strict=True))
    least = min(len(x), len(y))
    drawn = kernel_distance.subsets(len(x), len(y), c["subsets"], c["subset_size"], c["rng_seed"])
    for rows, name in zip(zip(*drawn, strict=True), ("idx1", "idx2"), strict=True):
        np.testing.assert_array_equal(rows, i[name])
    return dict(kid_mean=found.mean(), kid_std=found.std(), kid_rbf_mean=rbf.mean(), cleanfid_kernel_distance=clean.mean(),
                mmd2_first_min=kernel_distance.mmd2(x[:least], y[:least], polynomial), mmd_per_subset=found)


def inception_score(case: Case) -> Found:
    """Both evaluators' scores, for every way of splitting that the case names."""
    logits, found = case.inputs["logits"], {}
    for name in case.want:
        kind, _, rest = name.partition("_split")
        if kind == "adm":
            found[name] = scores.adm(logits, int(rest))
        elif kind in ("mean", "std"):
            splits, shuffle = (int(part) for part in rest.removeprefix("s").split("_shuffle"))
            found[name] = scores.torch_fidelity(logits, splits, bool(shuffle))[kind == "std"]
    return found | {"permutation": np.random.RandomState(2020).permutation(len(logits))}


def precision_recall(case: Case) -> Found:
    """Three evaluators on the same features."""
    real, fake, ks = case.inputs["real"], case.inputs["fake"], case.config["k"]
    found: Found = {}
    for k in ks:
        found |= {f"prdc_k{k}_{name}": value for name, value in prdc.prdc(real, fake, k)._asdict().items()}
        both = prdc.precision_recall(real, fake, k)
        found |= {f"torchfidelity_k{k}_precision": both[0], f"torchfidelity_k{k}_recall": both[1]}
    half, wide = ([prdc.adm(real, fake, k, half) for k in ks] for half in (True, False))
    scale = np.float32(65536)                                                    # at which the case was made
    for name in ("precision", "recall"):
        values = np.array([getattr(manifold, name) for manifold in wide])
        found |= {f"adm_fp32_{name}": values, f"adm_fp32_small_batches_{name}": values}
        found[f"adm_fp16_{name}"] = np.array([getattr(manifold, name) for manifold in half])
    found |= {f"adm_radii_{name}_sq": np.stack([getattr(m, f"radii_{name}") for m in wide], axis=1) for name in ("real", "fake")}
    realism = prdc.adm(scale * real, scale * fake, ks[0], half=False).realism
    return found | {"adm_realism": realism, "adm_batch_predictions": np.stack([m.inside for m in wide], axis=1)}


def clip_score(case: Case) -> Found:
    """Every definition on the same embeddings."""
    pair = case.inputs["image"], case.inputs["text"]
    found = clip_scores(*pair)
    return {"per_pair": 100 * cosines(*pair), "torchmetrics_score": found.torchmetrics, "clipscore_w2.5": found.clipscore,
            "mean_cosine": found.cosine}
