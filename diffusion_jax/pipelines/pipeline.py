"""What a Python user holds: a run that makes pictures, and how it makes them.

    pipe = pipeline("runs/digits")
    pipe(3, num=4, seed=0).save("threes.png")
    pipe.using(guidance=5.0, steps=30)(["a cat", "a dog"]).save("pets/")
    for step, images in pipe.stream("a cat", every=5): ...
    pipe.edit.switch(1, 7, values=[0, 10, 20])

A pipeline never changes: `using` gives another one. Compiled programs are shared by all of them:
another seed, prompt or scale, and another checkpoint of the same kind, compile nothing. It serves
every kind of run that makes pictures: of pixels, of latents, decoders of unCLIP with their priors,
upsamplers behind each other, and transformers over tokens.
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, short
from diffusion_jax.pipelines import cascade, latent, rerank, sampling, stream, tokens, unclip
from diffusion_jax.pipelines.conditions import conditions_of, label_numbers, request_of
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.edit import Maker
from diffusion_jax.pipelines.edits import Edits
from diffusion_jax.pipelines.lora import Loras, adapted
from diffusion_jax.pipelines.progress import Meter
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import (
    MOST,
    Request,
    check_negative,
    check_numbers,
    check_whole,
)
from diffusion_jax.pipelines.samples import Job, Origin, Samples, contents, recipe_fields
from diffusion_jax.pipelines.texts import Texts, repeated
from diffusion_jax.runs.folder import Run, check_kind, open_run
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Raw

MOST_STEP = 2**63 - 1
"""Of a checkpoint's folder."""
Folder = str | os.PathLike[str] | Run


@dataclass(frozen=True, eq=False)  # to compare weights would take as long as to sample
class Pipeline:
    """A run and how it makes pictures.

    Attributes:
      run: what was trained.
      recipe: how to sample: a `Recipe`, of a transformer over tokens a `Draw`.
      guide: a noisy classifier or a CLIP that guides it.
      weak: a weaker model of the same images to guide away from.
      upsamplers: pipelines of models that make the pictures larger, one after the other.
      prior: where the embeddings of unCLIP's decoder come from: a prior, 'text' or 'caption'.
      judge: a classifier or a CLIP that keeps the best of several.
      candidates: pictures that are made for each that the judge keeps.
      meter: counts steps of samplers as they are made, those of edits too; None for nobody.
      texts: what became of the last texts, see pipelines/texts.py.
    """

    run: Run
    recipe: Recipe | Draw
    guide: Run | None = None
    weak: Run | None = None
    upsamplers: tuple[Pipeline, ...] = ()
    prior: unclip.Prior | str | None = None
    judge: Run | None = None
    candidates: int = 1
    meter: Meter | None = None
    texts: Texts = field(default_factory=Texts)

    def __post_init__(self):
        # `replace` and files of pictures come here too, not flags alone, which are checked before.
        check_whole("candidates", self.candidates, 1, MOST)
        if self.judge is None and self.candidates != 1:
            raise ConfigError(
                "candidates (--candidates) are what a judge chooses among: give --rerank, a "
                "classifier or a CLIP"
            )
        # Now: an hour of sampling is a bad time to learn that nobody can judge it.
        if self.judge is not None:
            rerank.check(self.judge, self.picture_shape)

    def using(self, **changes: Any) -> Pipeline:
        """The same with other fields of its recipe.

        Raises:
          ConfigError: an unknown field (the message names the nearest known one), a value that it
            cannot have, or a change that would change nothing, with the reason.

        Example:
          pipe.using(steps=30, guidance=5.0, sampler='dpmpp_2m')
        """
        recipe = self.recipe.using(**changes)
        # A `Draw` has few fields, of which each always counts.
        if isinstance(recipe, Recipe):
            recipe.check_changes(changes, self.run.task, classifier=self.guide is not None)
        return replace(self, recipe=recipe)

    @property
    def diffusion(self) -> Recipe:
        """How to sample, of a diffusion model.

        Raises:
          ConfigError: it is a transformer over tokens.
        """
        if isinstance(self.recipe, Draw):
            raise ConfigError(
                f"{self.run.folder} holds {self.run.task.noun}: this is for diffusion models"
            )
        return self.recipe

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the pictures that it makes."""
        if self.upsamplers:
            return self.upsamplers[-1].picture_shape
        # The shape of a transformer is already that of its first stage's pictures.
        return self.run.task.shape if self.makes_tokens else self.run.task.picture_shape

    @property
    def makes_tokens(self) -> bool:
        """Whether it is a transformer over tokens."""
        return isinstance(self.recipe, Draw)

    @property
    def edit(self) -> Edits:
        """Pictures changed, and conditions changed half-way: `edit.invert`, `strength`,
        `switch`, `mix`, `guidance` ..."""
        helpers = {"classifier": self.guide, "weak": self.weak, "rerank": self.judge}
        for name, helper in helpers.items():
            if helper is not None:
                raise ConfigError(
                    f"edits are made by the model alone: open it without {name} (--{name})"
                )
        larger = self.stages[1:]
        return Edits(Maker(self.run, self.diffusion, self.prior, larger, self.meter))

    def __call__(
        self, request: Any = None, num: int = 1, seed: int = 0, batch: int = 100
    ) -> Samples:
        """Makes pictures.

        Args:
          request: a text, a label, a list of either, a `Request`, or None: the classes in turn, or
            held-out captions. Of a model that reads no text, a text is the name of a class.
          num: pictures of each text or label; in all, where there is none.
          seed: picture i of a seed does not depend on `num` or `batch`.
          batch: pictures at a time.

        Raises:
          ConfigError: what does not go with the model, before anything is made; pictures that are
            not finite.
        """
        return self.start(request, num, seed, batch).samples()

    def start(self, request: Any = None, num: int = 1, seed: int = 0, batch: int = 100) -> Job:
        """What `__call__` makes, checked but not yet made; for pictures that are to be written
        as they come."""
        request = request_of(request, self.run, self.guide, self.judge)
        check_numbers(num, seed, batch)
        total = num * request.rows
        origin = self.origin(request, num, seed, batch)
        if self.judge is not None:
            return self._ranked(self.judge, request, origin)
        if isinstance(self.recipe, Draw):
            # It continues a text; where the user gives none, those that it was tested on.
            prompts = request.prompts or tuple(self.run.captions(total))
            images = tokens.batches(self.run, self.recipe, request, prompts, total, seed, batch)
            return Job(origin, total, images, None, repeated(prompts, total))
        raw = self.conditions(request, total, seed)
        images = self.images(raw, total, seed, batch)
        return Job(origin, total, images, raw.get("label"), repeated(request.prompts, total))

    def conditions(self, request: Request, total: int, seed: int = 0) -> Raw:
        """What the model is conditioned on for `total` pictures of a request."""
        if request.complete is not None:
            raise ConfigError(
                "complete (--complete) is for a transformer over tokens: edit.inpaint makes a part "
                "of a picture anew"
            )
        check_negative(request, self.recipe.guides)
        raw = conditions_of(self.run, request, total, seed, self.guide, self.prior)
        # A weak model and upsamplers read the texts themselves.
        alone = self.weak is None and not self.upsamplers
        return self.texts.ready(self.run.model, raw, self.recipe.guides) if alone else raw

    def images(
        self,
        raw: Raw,
        total: int,
        seed: int = 0,
        batch: int = 100,
        starts: Sequence[int] | None = None,
    ) -> Iterator[np.ndarray]:
        """Batches of pictures [b, H, W, C] in about [-1, 1] under raw conditions, `total` in all,
        in order.

        Args:
          raw: conditions, [total, ...] each.
          total, seed, batch: as for `sampling.generate`.
          starts: the number of the first picture of each batch to make; all by default. Not with
            upsamplers.
        """
        stages = self.stages
        # All stages before the first picture of the first.
        cascade.check(stages, raw)
        model = self.texts.network(self.run.model)
        made = stream.generated(
            *(model, self.diffusion, raw, total, seed, batch, self.guides, starts),
            meter=self.meter,
        )
        if len(stages) > 1:
            made = cascade.upsampled(stages[1:], made, raw, total, seed, batch, self.meter)
        # Only the last stage may make latents: `check` refuses an upsampler after other shapes.
        return sampling.remarked(latent.decoded(stages[-1].model, made))

    @property
    def stages(self) -> list[cascade.Stage]:
        """This model and those that make its pictures larger."""
        return [cascade.Stage(pipe.run.model, pipe.diffusion) for pipe in (self, *self.upsamplers)]

    @property
    def guides(self) -> sampling.Guides:
        """What guides it, as models."""
        return sampling.Guides(
            guide=None if self.guide is None else self.guide.model,
            weak=None if self.weak is None else self.weak.model,
        )

    def stream(
        self, request: Any = None, num: int = 1, seed: int = 0, every: int = 5
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The pictures of `__call__` as they arise.

        Args:
          request, num, seed: as for `__call__`; a diffusion model's pictures are one batch.
          every: steps between two looks, of a transformer over tokens rows of tokens.

        Yields:
          (steps done, uint8 [N, H, W, C]): x0 as it stands, or the rows of tokens that are drawn;
          at last the pictures themselves.

        Raises:
          ConfigError: what `__call__` refuses; upsamplers, or a judge of a diffusion model, which
            come after those steps.
        """
        if self.makes_tokens:
            check_whole("every", every, 1, MOST)
            made = self(request, num, seed)
            return tokens.row_by_row(self.run, made.request, made.images, every)
        if self.upsamplers or self.judge is not None:
            raise ConfigError(
                "stream shows the steps of one model: call the pipeline itself where upsamplers or "
                "a judge follow"
            )
        request = request_of(request, self.run, self.guide, self.judge)
        check_numbers(num, seed)
        total = num * request.rows
        raw = self.conditions(request, total, seed)
        model = self.texts.network(self.run.model)
        steps = stream.watched(model, self.diffusion, raw, total, seed, every, self.guides)
        # No `yield`, so that what is refused is refused at the call.
        return ((step, self._pictures(x)) for step, x in steps)

    def _pictures(self, x: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] of what the network makes, x [N, h, w, c]."""
        return sampling.to_pixels(np.asarray(latent.decode(self.run.model, jnp.asarray(x))))

    def _ranked(self, judge: Run, request: Request, origin: Origin) -> Job:
        """The best of `candidates` times as many pictures for each prompt or label, the best
        first."""
        if request.complete is not None:
            raise ConfigError("completed pictures are not ranked: leave --rerank or --complete out")
        num = origin.num
        rerank.check_several(num * self.candidates)
        if self.makes_tokens and request.prompts is None:
            # A caption for each picture, within which its candidates compete; cut as in training.
            request = replace(request, prompt=tuple(self.run.captions(num)), truncate=True)
            num = 1
        labels = label_numbers(self.run, request, request.rows)
        if labels is None and request.prompts is None:
            raise ConfigError("a judge ranks pictures of a prompt or a label: give one")
        rows = request.rows
        prompts = repeated(request.prompts, rows)
        goals = rerank.goals(judge, self.run, prompts, labels, request.truncate)
        pool = replace(self, judge=None, candidates=1).start(
            request, num * self.candidates, origin.seed, origin.batch
        )
        images = rerank.chosen(judge, goals, pool.batches(), num)
        labels = None if labels is None else np.repeat(labels, num)  # [rows num]
        # `origin` is of the call as the user made it, which makes the same pictures again.
        return Job(origin, rows * num, images, labels, repeated(prompts, rows * num))

    def origin(self, request: Request, num: int, seed: int, batch: int) -> Origin:
        """What pictures of a call are made from, for their files."""
        helpers: dict[str, Any] = {}
        for name, run in (("classifier", self.guide), ("weak", self.weak), ("rerank", self.judge)):
            if run is not None:
                helpers[name] = run.identity
        if self.judge is not None:
            helpers["candidates"] = self.candidates
        if self.prior is not None:
            helpers["prior"] = unclip.described(self.prior)
        if self.upsamplers:
            helpers["upsamplers"] = [
                {"run": pipe.run.identity, "recipe": recipe_fields(pipe.recipe)}
                for pipe in self.upsamplers
            ]
        origin = Origin(
            request, num, seed, batch, recipe_fields(self.recipe), self.run.identity, helpers
        )
        return origin._replace(classes=self.run.class_names, contents=contents(request))


def pipeline(
    folder: Folder,
    upsamplers: Sequence[Folder] | None = None,
    classifier: Folder | None = None,
    weak: Folder | None = None,
    prior: Folder | None = None,
    rerank: Folder | None = None,
    candidates: int = 1,
    which: str = "ema",
    step: int | None = None,
    lora: Loras | None = None,
) -> Pipeline:
    """Opens a run's folder to make pictures.

    Args:
      folder: of a run, or one that is open.
      upsamplers: folders of models that make the pictures larger, () for none; None takes those
        that came with an imported model.
      classifier: of a noisy classifier that guides towards the label, or of a CLIP towards the
        text.
      weak: of a weaker model to guide away from.
      prior: of unCLIP's decoder: a prior's folder, 'text' or 'caption'.
      rerank: of a classifier or a CLIP that keeps the best of `candidates`.
      candidates: pictures that are made for each that is kept.
      which, step: the weights, see `open_run`.
      lora: files of LoRAs to merge into them, with their strengths: {"x.safetensors": 0.7}.

    Raises:
      ConfigError: a folder that is not there or holds another kind of model.
    """
    run = adapted(_opened(folder, (kinds.Pictures, kinds.Tokens), which, step), lora)
    judge = None if rerank is None else _opened(rerank, kinds.Guide, flag="--rerank ")
    if isinstance(run.task, kinds.Tokens):
        helpers = dict(upsampler=upsamplers, classifier=classifier, weak=weak, prior=prior)
        for name, helper in helpers.items():
            if helper:
                raise ConfigError(
                    f"{name} (--{name}) is for diffusion models: {run.folder} holds {run.task.noun}"
                )
        return Pipeline(run, Draw(), judge=judge, candidates=candidates)
    larger = unclip.own_upsampler(run) if upsamplers is None else upsamplers
    if not isinstance(larger, (list, tuple)):
        raise ConfigError(f"upsamplers are a list of folders: got {short(larger)}")
    guide = None if classifier is None else _opened(classifier, kinds.Guide, flag="--classifier ")
    return Pipeline(
        run,
        Recipe.of(run.recipe()),
        guide=guide,
        weak=None if weak is None else _opened(weak, kinds.Pictures, flag="--weak "),
        upsamplers=tuple(upsampler(other) for other in larger),
        prior=unclip.prior_of(prior, run),
        judge=judge,
        candidates=candidates,
    )


def _opened(
    folder: Folder, kind: Any, which: str = "ema", step: int | None = None, flag: str = ""
) -> Run:
    """A run of a kind; one that is open stays as it is."""
    if isinstance(folder, Run):
        check_kind(folder.task, kind, f"{flag}{folder.folder}")
        return folder
    if step is not None:
        check_whole("step", step, 0, MOST_STEP)
    return open_run(folder, kind, which, step, flag)


def upsampler(folder: Folder) -> Pipeline:
    """A model that makes pictures larger, as its page samples it."""
    run = _opened(folder, kinds.Pictures, flag="--upsampler ")
    return Pipeline(run, Recipe.of(run.recipe()))
