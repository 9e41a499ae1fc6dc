"""Mean and covariance of features that come in batches, and from several processes.

Of a set of n features, kept are n, the mean m and the scatter S = sum (x - m)(x - m)^T, in float64. Two sets make one (Chan et
al. 1979):

    n = na + nb,   m = ma + (nb / n) d,   S = Sa + Sb + (na nb / n) d d^T,   d = mb - ma          (1)

so the result does not depend on how the features were cut into batches, up to the rounding of float64. The covariance is the
unbiased S / (n - 1).
"""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.source import npz
from diffusion_jax.files import whole


class Moments(NamedTuple):
    """Mean [D] and unbiased covariance [D, D], float64."""

    mean: np.ndarray
    cov: np.ndarray


class Sums(NamedTuple):
    """n, m [D] and S [D, D] of (1)."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray


def sums(features: np.ndarray) -> Sums:
    """Of one batch of features [N, D], N > 0.

    Raises:
      ConfigError: they are no such array, or some are not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not len(features):
        raise ConfigError(f"moments are of features [N, D], got {features.shape}")
    if not np.isfinite(features).all():
        raise ConfigError("some of the features are not finite: look at the images that they are of")
    mean = features.mean(axis=0)
    return Sums(len(features), mean, (features - mean[None]).T @ (features - mean[None]))


def merge(a: Sums, b: Sums) -> Sums:
    """(1)."""
    count, d = a.count + b.count, b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(d, d) * (a.count * b.count / count)
    return Sums(count, a.mean + d * (b.count / count), scatter)


def total(batches: Iterable[np.ndarray]) -> Sums:
    """(1) over batches of features [N, D] each, of which one at a time is held.

    Raises:
      ConfigError: there are none, or what `sums` refuses.
    """
    found: Sums | None = None
    for batch in batches:
        found = sums(batch) if found is None else merge(found, sums(batch))
    if found is None:
        raise ConfigError("moments of no features at all: there are no images")
    return found


def over_processes(own: Sums) -> Sums:
    """(1) over what all processes hold, the same on each of them."""
    if jax.process_count() == 1:
        return own
    from jax.experimental import multihost_utils

    flat = np.concatenate([[own.count], own.mean, own.scatter.ravel()])
    words = multihost_utils.process_allgather(flat.view(np.uint32))               # JAX would round float64
    d, found = len(own.mean), None
    for row in np.ascontiguousarray(words).view(np.float64):
        part = Sums(int(row[0]), row[1 : d + 1], row[d + 1 :].reshape(d, d))
        found = part if found is None else merge(found, part)
    return found


def moments(of: Sums | np.ndarray) -> Moments:
    """The moments of sums, or of features [N, D].

    Raises:
      ConfigError: fewer than two features, or what `sums` refuses.
    """
    found = of if isinstance(of, Sums) else sums(of)
    if found.count < 2:
        raise ConfigError(f"a covariance needs at least 2 images, there is {found.count}")
    return Moments(found.mean, found.scatter / (found.count - 1))


def save(path: str | Path, found: Moments, spatial: Moments | None = None, **said: str | int) -> None:
    """Writes statistics as pytorch-fid and ADM name them: mu, sigma, mu_s, sigma_s; and what else is said of them."""
    more = {} if spatial is None else {"mu_s": spatial.mean, "sigma_s": spatial.cov}
    with whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, mu=found.mean, sigma=found.cov, **more, **said)


def load(path: str | Path, spatial: bool = False) -> Moments:
    """Statistics from an .npz of pytorch-fid (mu, sigma) or of ADM (also mu_s, sigma_s, taken with `spatial`).

    Raises:
      ConfigError: no such file, or not of this kind.
    """
    names = ("mu_s", "sigma_s") if spatial else ("mu", "sigma")
    try:
        with npz(path) as arrays:
            mean, cov = (arrays[name] for name in names)
    except KeyError:
        raise ConfigError(f"{path} holds no statistics {names[0]}, {names[1]}: it is no reference for this metric") from None
    return checked(mean, cov, path)


def checked(mean: np.ndarray | None, cov: np.ndarray | None, path: str | Path) -> Moments:
    """Statistics that were read from `path`.

    Raises:
      ConfigError: they are no mean [D] and covariance [D, D].
    """
    mean, cov = (np.asarray(value if value is not None else np.nan, np.float64) for value in (mean, cov))
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ConfigError(f"{path} holds a mean of {mean.shape} and a covariance of {cov.shape}: no statistics of features")
    return Moments(mean, cov)
