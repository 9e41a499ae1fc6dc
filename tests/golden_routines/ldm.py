"""CompVis/latent-diffusion, CompVis/stable-diffusion and their diffusers forms: one routine per kind."""
from golden_routines.ldm_diffusion import ema, schedule, timestep_embedding  # noqa: F401
from golden_routines.ldm_first_stage import (  # noqa: F401
    autoencoder_kl,
    autoencoder_loss,
    diffusers_autoencoder_kl,
    discriminator,
    lpips,
    vqmodel,
)
from golden_routines.ldm_loops import diffusers_sampler, latent_diffusion_loss, latent_diffusion_trajectory  # noqa: F401
from golden_routines.ldm_network import bert_embedder, diffusers_unet, keys, unet  # noqa: F401
