"""Kinds: every task is of those, and only those, that it can do; and says what it is."""
import pytest
from flax import linen as nn

from diffusion_jax.diffusion.process import DDPM, Flow
from diffusion_jax.diffusion.scales import Eps, V, Velocity
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.clip import CLIP, TextTower, ViT
from diffusion_jax.models.cond import Label
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.prior_ar import ARPrior
from diffusion_jax.models.unclip import ImageText, Text
from diffusion_jax.models.vae import KL, VQ
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.autoencoder import Autoencoder, Perceptual
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.consistency import Consistency
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.tasks.dvae import DiscreteVAE
from diffusion_jax.tasks.embedder import Embedder
from diffusion_jax.tasks.meanflow import MeanFlow
from diffusion_jax.tasks.prior import AutoregressivePrior, DiffusionPrior

NET = nn.Dense(1)
WAY = (DDPM(), Eps())
TOWERS = CLIP(ViT(6, size=4, patch=2, width=8, layers=1, heads=2),
              TextTower(6, vocab=9, context=5, width=8, layers=1, heads=2))
CONTRASTIVE = Contrastive(TOWERS, (4, 4, 1))
EMBEDDER = Embedder(CONTRASTIVE, empty=(7, 8, 0), components=4)
VAE = Autoencoder(KL(mults=(1, 2)), (8, 8, 3))
DVAE_TASK = DiscreteVAE(
    DVAE(codes=8, width=8, mults=(1, 2), depth=1, init_width=4, channels=1), (8, 8, 1))
TEXT_TO_CODES = DALLE(
    text_codes=10, image_codes=8, text_length=3, grid=4, width=16, depth=2, heads=2, kernel=3,
    start=0)
TASKS = {
    "pixels": (Diffusion(NET, Label(3, 4), *WAY, (8, 8, 3)), {"Denoising", "Pictures"}),
    "latents": (Diffusion(NET, Label(3, 4), *WAY, (4, 4, 4), first_stage=VAE),
                {"Denoising", "Pictures"}),
    "decoder": (Diffusion(NET, ImageText(6, 8, 4), *WAY, (8, 8, 3), first_stage=EMBEDDER),
                {"Denoising", "Pictures"}),
    "prior": (DiffusionPrior(NET, Text(6), *WAY, (6,), first_stage=EMBEDDER),
              {"Denoising", "Prior"}),
    "consistency": (Consistency(NET, Label(3, 4), DDPM(), V(), (8, 8, 3)), {"Denoising", "Pictures", "FewSteps"}),
    "meanflow": (MeanFlow(DiT(2, 8, 1, 2, interval=True), Label(3, 4), Flow(), Velocity(), (8, 8, 4)),
                 {"Denoising", "Pictures", "FewSteps"}),
    "ar": (AutoregressivePrior(ARPrior(6, context=5), EMBEDDER), {"Prior"}),
    "classifier": (NoisyClassifier(Classifier(num_classes=3, width=8), DDPM(), (8, 8, 1)),
                   {"Guide", "Classifier"}),
    "clip": (CONTRASTIVE, {"Guide", "TwoTowers"}),
    "vae": (VAE, {"Encoding"}),
    "vq": (Autoencoder(VQ(mults=(1, 2)), (8, 8, 3)), {"Encoding"}),
    "dvae": (DVAE_TASK, {"Discrete"}),
    "tokens": (Autoregressive(TEXT_TO_CODES, DVAE_TASK), {"Tokens"}),
    "codes": (Autoregressive(TEXT_TO_CODES), {"Tokens"}),
    "embedder": (EMBEDDER, {"Embeds"}),
    "perceptual": (Perceptual(), set()),
    "module": (NET, set()),
}
KINDS = ("Denoising", "Pictures", "FewSteps", "Prior", "Guide", "Classifier", "TwoTowers", "Encoding",
         "Discrete", "Tokens", "Embeds")


@pytest.mark.parametrize(("task", "names"), TASKS.values(), ids=TASKS)
def test_a_task_is_of_the_kinds_whose_work_it_does(task, names):
    assert {name for name in KINDS if isinstance(task, getattr(kinds, name))} == names


def test_every_task_says_what_it_is():
    nouns = {name: task.noun for name, (task, _) in TASKS.items() if name != "module"}
    assert all(noun.split()[0] in ("a", "an") for noun in nouns.values())
    same = {"pixels": "Pictures", "prior": "Prior", "ar": "Prior", "classifier": "Classifier",
            "clip": "TwoTowers", "vae": "Encoding", "dvae": "Discrete", "tokens": "Tokens",
            "embedder": "Embeds"}
    for name, kind in same.items():
        assert nouns[name] == getattr(kinds, kind).noun


def test_a_diffusion_model_knows_its_pictures_and_its_first_stage():
    pixels, latents, decoder = (TASKS[name][0] for name in ("pixels", "latents", "decoder"))
    assert pixels.picture_shape == latents.picture_shape == decoder.picture_shape == (8, 8, 3)
    assert (pixels.autoencoder, latents.autoencoder, decoder.autoencoder) == (None, VAE, None)
    assert (pixels.embedder, latents.embedder, decoder.embedder) == (None, None, EMBEDDER)
    assert pixels.needs == latents.needs == ("label",) and decoder.needs == ("tokens",)
