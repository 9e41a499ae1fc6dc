"""A run opened with the runs that help it to sample, as flags and pages name them.

    helped("runs/digits", Helpers(weak="runs/digits", weak_step=100))

It is `pipeline` for what `Helpers` holds beside folders: an earlier step of the weak model, and
another way of sampling the prior.
"""
from __future__ import annotations

from dataclasses import replace

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import unclip
from diffusion_jax.pipelines.lora import Loras
from diffusion_jax.pipelines.pipeline import Folder, Pipeline, pipeline
from diffusion_jax.pipelines.request import Helpers
from diffusion_jax.pipelines.texts import offloaded
from diffusion_jax.runs.folder import Run, open_run
from diffusion_jax.tasks import kinds


def helped(
    folder: Folder,
    helpers: Helpers,
    which: str = "ema",
    step: int | None = None,
    own_upsampler: bool = True,
    loras: Loras | None = None,
    offload: bool = False,
) -> Pipeline:
    """Opens a run to make pictures, sampling as its page says, and what helps it.

    Args:
      folder: of a run, or one that is open.
      helpers: the other runs.
      which, step: the weights, see `open_run`; of an open run those that it has.
      own_upsampler: whether the upsampler that came with an imported model follows where the
        helpers name none.
      loras: files of LoRAs to merge into the weights, with their strengths.
      offload: whether text towers are kept on the host, see `texts.offloaded`.

    Raises:
      ConfigError: what `pipeline` and `texts.offloaded` refuse, or options of a prior where there
        is none.
    """
    upsamplers = helpers.upsampler
    if not upsamplers and own_upsampler:
        upsamplers = None
    pipe = pipeline(
        folder,
        upsamplers=upsamplers,
        classifier=helpers.classifier,
        weak=_weak(helpers),
        prior=helpers.prior,
        rerank=helpers.rerank,
        candidates=helpers.candidates or 1,
        which=which,
        step=step,
        lora=loras,
    )
    pipe = _with_prior(pipe, helpers)
    return offloaded(pipe) if offload else pipe


def _weak(helpers: Helpers) -> Run | None:
    """The model to guide away from."""
    if helpers.weak is None:
        return None
    # Opened here: of a folder `pipeline` takes the newest step, this may be an earlier one.
    return open_run(helpers.weak, kinds.Pictures, step=helpers.weak_step, flag="--weak ")


def _with_prior(pipe: Pipeline, helpers: Helpers) -> Pipeline:
    """The pipeline whose prior samples as the helpers say."""
    options = {"guidance": helpers.prior_guidance, "steps": helpers.prior_steps}
    changes = {name: value for name, value in options.items() if value is not None}
    if not changes and helpers.prior_best is None:
        return pipe
    if not isinstance(pipe.prior, unclip.Prior):
        names = "--prior_guidance, --prior_steps and --prior_best"
        raise ConfigError(f"{names} are of a prior's folder: give --prior FOLDER")
    # The prior is open by now: another way of sampling it reads no weights again.
    best = helpers.prior_best or pipe.prior.best
    return replace(pipe, prior=unclip.prior_of(pipe.prior.run, pipe.run, best, **changes))
