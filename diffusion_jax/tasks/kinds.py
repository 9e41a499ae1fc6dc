"""What a trained task can do: the kinds that a mode or a pipeline asks for.

    isinstance(task, kinds.Pictures)

asks what an object can do, not what class it is: it holds wherever the named methods and attributes
are there. Each kind has a `noun`, and so has each task, for the one sentence that refuses a run:

    runs/x holds a CLIP: give the folder of a diffusion model

A kind names the members that its users call; a task may be of several kinds.
"""
from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from diffusion_jax.diffusion.scales import Scale
from diffusion_jax.diffusion.times import Memoryless, SecondMoment
from diffusion_jax.models.vae import Posterior
from diffusion_jax.tasks.codes import Coder
from diffusion_jax.types import (
    Array,
    Cond,
    Conditioner,
    Denoiser,
    FirstStage,
    Key,
    Metrics,
    Params,
    Process,
    Raw,
    Task,
)


@runtime_checkable
class Denoising(Task, Protocol):
    """What a sampler can be run on: a model of pictures, of their latents, or of embeddings."""

    noun: ClassVar[str] = "a diffusion model or a diffusion prior"

    @property
    def process(self) -> Process:
        """The forward process."""
        ...

    @property
    def scale(self) -> Scale:
        """What the network predicts."""
        ...

    @property
    def cond(self) -> Conditioner:
        """The conditioner."""
        ...

    @property
    def variance(self) -> str:
        """That of the ancestral sampler, see diffusion/samplers.py."""
        ...

    @property
    def learned_variance(self) -> bool:
        """Whether the network puts out the variance beside its prediction."""
        ...

    def embed(self, params: Params, raw: Raw) -> Cond:
        """What the network sees of a raw condition."""
        ...

    def away(self, raw: Raw) -> Raw:
        """What classifier-free guidance leads away from."""
        ...

    def denoiser(self, params: Params, dropout: Key | None = None) -> Denoiser:
        """The trained denoiser, without guidance."""
        ...


@runtime_checkable
class AtTimes(Denoising, Protocol):
    """Tells its loss at times and with noise of one's choice."""

    @property
    def times(self) -> Memoryless | SecondMoment:
        """How the times of training are drawn."""
        ...

    def prepare(self, batch: Raw, frozen: Params, key: Key | None) -> Raw:
        """A batch of the data as it is trained on; without a key nothing is drawn."""
        ...

    def terms(
        self, params: Params, batch: Raw, t: Array, eps: Array, dropout: Key | None = None
    ) -> Metrics:
        """The loss of every sample and its parts, [B] each, at times t [B]."""
        ...


@runtime_checkable
class Pictures(Denoising, Protocol):
    """Makes pictures, or latents that its autoencoder decodes to pictures."""

    noun: ClassVar[str] = "a diffusion model"

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a picture."""
        ...

    @property
    def autoencoder(self) -> Encoding | None:
        """The first stage, where it is one that makes latents of pictures."""
        ...

    @property
    def embedder(self) -> Embeds | None:
        """The first stage, where it is one that adds embeddings: that of a decoder of unCLIP."""
        ...


@runtime_checkable
class FewSteps(Pictures, Protocol):
    """Makes pictures in few steps, by samplers that can read what it knows of the flow."""

    noun: ClassVar[str] = "a model of few steps"

    def check_sampler(self, name: str) -> None:
        """Raises ConfigError for a sampler, by its name, that cannot."""
        ...


@runtime_checkable
class Prior(Task, Protocol):
    """Makes CLIP's embeddings of pictures from texts."""

    noun: ClassVar[str] = "a prior of unCLIP"

    @property
    def first_stage(self) -> Embeds:
        """The CLIP."""
        ...

    def embeddings(self, first: Params, made: Array) -> Array:
        """The embeddings [B, F], as that CLIP gives them, of what this prior makes.

        Args:
          first: the parameters of the CLIP.
          made: standardised embeddings [B, F], or codes int32 [B, n].
        """
        ...


@runtime_checkable
class Guide(Task, Protocol):
    """Guides a diffusion model by the gradient of log p(target | x_t)."""

    noun: ClassVar[str] = "a noisy classifier or a CLIP"

    @property
    def target(self) -> str:
        """The raw key that holds what it guides towards."""
        ...

    def log_prob(
        self, params: Params, x: Array, t: Array, target: Array, process: Process, /
    ) -> Array:
        """log p(target | x_t) [B], up to a constant, of x_t [B, H, W, C] of any process.

        t is a scalar or [B]; the target is raw[self.target].
        """
        ...


@runtime_checkable
class Classifier(Guide, Protocol):
    """Tells the class of a noised picture."""

    noun: ClassVar[str] = "a noisy classifier"

    @property
    def process(self) -> Process:
        """The forward process of the images that it was trained on."""
        ...

    def logits(self, params: Params, x: Array, t: Array, dropout: Key | None = None) -> Array:
        """[B, classes] at x_t [B, H, W, C], t a scalar or [B]."""
        ...

    def features(self, params: Params, images: Array) -> Array:
        """What the last layer sees of clean images: [B, D]."""
        ...


@runtime_checkable
class TwoTowers(Guide, Protocol):
    """Tells which text belongs to which picture."""

    noun: ClassVar[str] = "a CLIP"

    def features(self, params: Params, images: Array) -> Array:
        """What the image tower says of clean images, [B, F] of any length."""
        ...

    def encode_image(self, params: Params, images: Array) -> Array:
        """Unit vectors [B, F] of images [B, H, W, C] in [-1, 1]."""
        ...

    def encode_text(self, params: Params, tokens: Array) -> Array:
        """Unit vectors [N, F] of tokens [N, T]."""
        ...


@runtime_checkable
class Encoding(Task, FirstStage, Protocol):
    """Turns pictures into latents and back."""

    noun: ClassVar[str] = "an autoencoder"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a picture."""
        ...

    def posterior(self, params: Params, images: Array) -> Posterior:
        """The distribution of the latents of images, not yet scaled."""
        ...

    def encode(self, params: Params, images: Array, eps: Array | None = None) -> Array:
        """Images [B, H, W, C] in [-1, 1] -> latents [B, h, w, c], drawn with eps; means without."""
        ...

    def decode(self, params: Params, x: Array, tile: int = 0) -> Array:
        """Latents [B, h, w, c] -> images [B, H, W, C], about [-1, 1]."""
        ...


@runtime_checkable
class Discrete(Task, Protocol):
    """Turns pictures into codes and back, by a relaxed choice in training."""

    noun: ClassVar[str] = "a discrete VAE"

    @property
    def codes(self) -> int:
        """The size of the codebook."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        ...

    def logits(self, params: Params, images: Array) -> Array:
        """Of the codes, [B, h, w, codes]."""
        ...

    def relaxed(self, logits: Array, gumbel: Array, tau: Array | float) -> Array:
        """The relaxed one-hot codes [B, h, w, codes]."""
        ...

    def encode(self, params: Params, images: Array) -> Array:
        """The most likely codes, int32 [B, h * w] row by row."""
        ...

    def decode(self, params: Params, codes: Array) -> Array:
        """Images [B, H, W, C] of codes [B, h * w]."""
        ...


@runtime_checkable
class Tokens(Task, Protocol):
    """Makes the codes of a picture one after the other, from the tokens of a text."""

    noun: ClassVar[str] = "a transformer over text and image tokens"

    @property
    def coder(self) -> Coder | None:
        """What makes codes of images and images of codes; None where codes came with the data."""
        ...

    def terms(
        self, params: Params, text: Array, codes: Array, dropout: Key | None = None
    ) -> Metrics:
        """The parts of the loss of every sample, in nats per token."""
        ...


@runtime_checkable
class Embeds(FirstStage, Protocol):
    """A CLIP as a first stage: pictures and texts to embeddings, and those to codes and back."""

    noun: ClassVar[str] = "a CLIP with the statistics of its embeddings"

    @property
    def features(self) -> int:
        """F, the channels of an embedding."""
        ...

    @property
    def components(self) -> int:
        """How many principal components are kept, which is how many codes an embedding has."""
        ...

    def embed(self, params: Params, images: Array) -> Array:
        """Embeddings [B, F] of images [B, H, W, C] in [-1, 1]."""
        ...

    def embed_text(self, params: Params, tokens: Array) -> Raw:
        """clip_text [N, F], text_states [N, L, D] and text_mask [N, L] of tokens [N, L]."""
        ...

    def texts(self, params: Params, tokens: Array) -> Raw:
        """The same, and the same of the empty text: all that a prior reads."""
        ...

    def reduced(self, params: Params, y: Array, components: int) -> Array:
        """Embeddings y [B, F] with what lies along the first principal components alone."""
        ...
