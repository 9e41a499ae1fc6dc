"""One to three steps of every sampler on every process and every grid: the moments of Gaussian data, or a refusal that has a
remedy. All grids of all processes are one batch, on a process that is a table of theirs."""
import functools
import itertools
import re
import statistics
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import multistep, process, reach, samplers, times, unipc
from diffusion_jax.diffusion.lcm import lcm

DATA, KEY = Gaussian(), jax.random.key(0)
NORMAL = np.float32([statistics.NormalDist().inv_cdf((i + 0.5) / 64) for i in range(64)])
SHUFFLED = np.random.default_rng(0).permutation(NORMAL)
PROCESSES = {
    "linear": process.DDPM(), "squaredcos": process.DDPM("squaredcos"), "scaled": process.DDPM("scaled_linear"),
    "four": process.DDPM("squaredcos", 4), "cosine": process.Cosine(), "edm": process.EDM(),
    "zero_snr": process.DDPM("scaled_linear", zero_snr=True), "flow": process.Flow(), "shifted": process.Flow(3.0),
}
PURE = ("zero_snr", "flow", "shifted")
SAMPLERS = {    # name -> (the sampler, its strain)
    "ancestral": (samplers.ancestral, None),
    "fixed_large": (partial(samplers.ancestral, variance="fixed_large"), reach.large_variance),
    "ddim": (samplers.ddim, None), "ddim_1": (partial(samplers.ddim, eta=1.0), None), "heun": (samplers.heun, None),
    "edm": (samplers.edm, reach.second_evaluation), "plms": (multistep.plms, reach.first_step),
    "dpmpp_2m": (multistep.dpmpp_2m, None), "dpmpp_2m_heun": (partial(multistep.dpm_solver, corrector="heun"), None),
    "dpmpp_3m": (partial(multistep.dpm_solver, order=3), None), "sde": (multistep.dpmpp_2m_sde, None),
    "dpm_2": (partial(multistep.dpm_solver, form="eps"), None),
    "dpm_3": (partial(multistep.dpm_solver, form="eps", order=3), None),
    "sde_eps": (partial(multistep.dpm_solver, form="eps", sde=True), reach.fresh_noise),
    "unipc": (unipc.unipc, None), "unipc_3": (partial(unipc.unipc, order=3), None),
    "unipc_bh1": (partial(unipc.unipc, variant="bh1"), reach.first_variant),
    "unipc_eps": (partial(unipc.unipc, form="eps"), reach.second_evaluation),
    "unipc_eps_bh1": (partial(unipc.unipc, form="eps", variant="bh1"), reach.second_evaluation),
    "unipc_high": (partial(unipc.unipc, order=3, lower_order_final=False), None),
    "deis_2": (partial(unipc.deis, order=2), None), "deis_3": (unipc.deis, None), "lcm": (lcm, None),
}
SILENT = ("heun", "plms", "dpmpp_2m", *(name for name in SAMPLERS if name.startswith(("uni", "deis"))))
DIVIDE = ("edm", "plms", "dpm_2", "dpm_3", "sde_eps", "unipc_bh1", "unipc_eps", "unipc_eps_bh1", "deis_2", "deis_3")
CHURN = {"edm": partial(samplers.edm, s_churn=1.0), "euler": partial(samplers.euler, s_churn=1.0)}


def noise(key, shape, dtype):
    """Another order of the same 64 values at every step."""
    return jnp.roll(jnp.asarray(SHUFFLED, dtype), jax.random.key_data(key)[-1] % 64)


@dataclass(frozen=True, eq=False)
class Table:
    """A process of the times of some grids, which are counted through."""

    alphas: np.ndarray
    sigmas: np.ndarray
    t_max: int = 0
    t_clean: int = 3

    def alpha(self, t):
        return jnp.asarray(self.alphas)[t]

    def sigma(self, t):
        return jnp.asarray(self.sigmas)[t]

    def unit(self, t):
        return self.sigma(t)


@functools.cache
def grids(kind):
    """(kind, name, steps) -> every grid of 1, 2 and 3 steps of a process that is not refused."""
    p, made = PROCESSES[kind], {}
    for name, steps in itertools.product(times.GRIDS, (1, 2, 3)):
        try:
            grid = getattr(times, name)(p, steps)
            reach.check_start(p, grid)
        except ConfigError as error:
            assert "choose times 'trailing'" in str(error) or "continuous" in str(error), error
            continue
        made[kind, name, steps] = grid
    assert {(kind, name, steps) for name in ("uniform", "karras", "log_snr") for steps in (1, 2, 3)} <= set(made)
    return made


def tabled(cases):
    """(the table of some grids, chains [cases, 4] of its times: what is shorter ends with steps of length zero)."""
    alphas, sigmas, chains = [], [], []
    for (kind, _, steps), grid in cases.items():
        first, grid = len(alphas), jnp.asarray(np.append(grid, np.repeat(grid[-1:], 3 - steps)))
        alphas += [float(a) for a in PROCESSES[kind].alpha(grid)]
        sigmas += [float(s) for s in PROCESSES[kind].sigma(grid)]
        chains.append(first + np.searchsorted(-np.asarray(grid), -np.asarray(grid)))
    return Table(np.float32(alphas), np.float32(sigmas)), np.int32(chains)


def moments(p, sampler, chains):
    """(means, standard deviations) of runs over grids [cases, N] from noise."""
    exact = DATA.denoiser(p)

    def run(grid):
        x = samplers.start(p, grid, KEY, NORMAL.shape, lambda *_: jnp.asarray(NORMAL))
        return samplers.sample(exact, sampler, x, grid, {}, KEY)

    x = np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(chains)))
    return x.mean(axis=1), x.std(axis=1)


def check(sampler, name, p, cases, chains, strain):
    """Pure noise would have the mean 0, and what is thrown out of range any spread; few steps draw too little of it."""
    warned = {}
    for (kind, grid_name, steps), mean, std in zip(cases, *moments(p, sampler, chains), strict=True):
        of, grid = PROCESSES[kind], cases[kind, grid_name, steps]
        if strain and reach.strain(of, grid, strain) > reach.LIMIT:
            warned[kind] = grid
        else:
            assert abs(mean - DATA.mean) < 0.4 and std < 1.3, (kind, grid_name, steps, mean, std)
    for kind, grid in warned.items():
        remark = reach.remark(PROCESSES[kind], grid, strain, name)
        assert re.search("at once, further than it can: choose .*more steps, or sampler 'dpmpp_2m' or 'ddim'", remark)


# One that always can, one that cannot everywhere, one that draws: moments need many chains.
@pytest.mark.parametrize("name", [
    name if name in ("ddim", "edm", "sde") else pytest.param(name, marks=pytest.mark.slow)
    for name in SAMPLERS])
def test_few_steps_give_the_moments_or_a_remedy(name):
    make, strain = SAMPLERS[name]
    make = make if name in SILENT else partial(make, noise=noise)
    kinds = [kind for kind in PROCESSES if not (kind in PURE and name in DIVIDE)]
    cases = {case: grid for kind in kinds for case, grid in grids(kind).items()}
    p, chains = tabled(cases)
    check(make(p), name, p, cases, chains, strain)


@pytest.mark.parametrize(("name", "kind"), [
    pytest.param(name, kind, marks=() if (name, kind) == ("euler", "linear") else pytest.mark.slow)
    for name in CHURN for kind in ("linear", "edm")])
def test_few_steps_with_churn(name, kind):
    """Churn asks a process for the time of a noise level, which the table of the others has not."""
    cases = {case: grid for case, grid in grids(kind).items() if case[2] == 3}
    strain = reach.second_evaluation if name == "edm" else None
    p = PROCESSES[kind]
    check(CHURN[name](p, noise=noise), name, p, cases, np.stack(list(cases.values())), strain)


@pytest.mark.parametrize("name", DIVIDE)
@pytest.mark.parametrize("kind", PURE)
def test_what_divides_by_alpha_is_refused_where_it_is_0(name, kind):
    with pytest.raises(ConfigError, match="divides by alpha"):
        SAMPLERS[name][0](PROCESSES[kind])
