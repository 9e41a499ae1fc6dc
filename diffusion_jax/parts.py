"""What pages and stored configs are made of: all that `build` makes of this package.

A checkpoint's config is input from elsewhere. Nothing that stands here writes, deletes, opens a
connection, starts a process or changes the process when it is made, with whatever arguments:
tests/test_build.py makes all of it under an audit hook. What is not here, no config can name.
"""
from __future__ import annotations

PARTS = {
    "networks": """
        diffusion_jax.models.bert:TextEncoder
        diffusion_jax.models.classifier:Classifier
        diffusion_jax.models.clip:CLIP
        diffusion_jax.models.clip:TextTower
        diffusion_jax.models.clip:ViT
        diffusion_jax.models.clip_resnet:ResNet
        diffusion_jax.models.dalle:DALLE
        diffusion_jax.models.diffit:DiffiT
        diffusion_jax.models.diffit_image:ImageDiffiT
        diffusion_jax.models.dit:DiT
        diffusion_jax.models.dvae:DVAE
        diffusion_jax.models.dvae_codebook:CodebookVAE
        diffusion_jax.models.edm2:EDM2
        diffusion_jax.models.edm2:Uncertainty
        diffusion_jax.models.gan:Discriminator
        diffusion_jax.models.lpips:LPIPS
        diffusion_jax.models.mmdit:MMDiT
        diffusion_jax.models.prior:Prior
        diffusion_jax.models.prior_ar:ARPrior
        diffusion_jax.models.t5:T5Encoder
        diffusion_jax.models.tae:TAE
        diffusion_jax.models.unclip:Relay
        diffusion_jax.models.unet:UNet
        diffusion_jax.models.vae:KL
        diffusion_jax.models.vae:VQ
    """,
    "conditioners": """
        diffusion_jax.models.augment:Augmented
        diffusion_jax.models.clip_cond:Features
        diffusion_jax.models.cond:Joint
        diffusion_jax.models.cond:Label
        diffusion_jax.models.cond:LowRes
        diffusion_jax.models.cond:Nothing
        diffusion_jax.models.cond:OneHot
        diffusion_jax.models.glide:Inpaint
        diffusion_jax.models.guidance_weight:GuidanceWeight
        diffusion_jax.models.glide:Text
        diffusion_jax.models.sd3_text:SD3Text
        diffusion_jax.models.sdxl_text:XLText
        diffusion_jax.models.text_cond:LabelToken
        diffusion_jax.models.text_cond:Stack
        diffusion_jax.models.text_cond:TowerText
        diffusion_jax.models.unclip:ImageText
        diffusion_jax.models.unclip:Text
    """,
    "processes": """
        diffusion_jax.diffusion.process:Cosine
        diffusion_jax.diffusion.process:DDPM
        diffusion_jax.diffusion.process:EDM
        diffusion_jax.diffusion.process:Flow
    """,
    "scales": """
        diffusion_jax.diffusion.scales:EDM
        diffusion_jax.diffusion.scales:Eps
        diffusion_jax.diffusion.scales:PreviousMean
        diffusion_jax.diffusion.scales:V
        diffusion_jax.diffusion.scales:Velocity
        diffusion_jax.diffusion.scales:X0
    """,
    "times": """
        diffusion_jax.diffusion.times:LogNormal
        diffusion_jax.diffusion.times:LogitNormal
        diffusion_jax.diffusion.times:SecondMoment
        diffusion_jax.diffusion.times:Stratified
        diffusion_jax.diffusion.times:Uniform
    """,
    "weights": """
        diffusion_jax.diffusion.losses:EDM
        diffusion_jax.diffusion.losses:MinSNR
        diffusion_jax.diffusion.losses:P2
        diffusion_jax.diffusion.losses:Simple
    """,
    "tasks": """
        diffusion_jax.tasks.autoencoder:Autoencoder
        diffusion_jax.tasks.autoencoder:Perceptual
        diffusion_jax.tasks.autoregressive:Autoregressive
        diffusion_jax.tasks.classifier:NoisyClassifier
        diffusion_jax.tasks.clip:Contrastive
        diffusion_jax.tasks.consistency:Consistency
        diffusion_jax.tasks.diffusion:Diffusion
        diffusion_jax.tasks.dvae:DiscreteVAE
        diffusion_jax.tasks.embedder:Embedder
        diffusion_jax.tasks.meanflow:MeanFlow
        diffusion_jax.tasks.prior:AutoregressivePrior
        diffusion_jax.tasks.prior:DiffusionPrior
    """,
    "losses": """
        diffusion_jax.tasks.autoencoder_loss:Losses
        diffusion_jax.tasks.dvae:Anneal
    """,
    "data sets": """
        diffusion_jax.data.arrays:Arrays
        diffusion_jax.data.arrays:Tiles
        diffusion_jax.data.digits:Digits
        diffusion_jax.data.folder:Folder
        diffusion_jax.data.latents:Latents
        diffusion_jax.data.tfds:TFDS
    """,
    "decoders": """
        diffusion_jax.data.image:Decode
        diffusion_jax.data.latents:Draw
    """,
    "tokenizers": """
        diffusion_jax.data.caption_bpe:CaptionBPE
        diffusion_jax.data.clip_bpe:ClipBPE
        diffusion_jax.data.glide_bpe:GlideBPE
        diffusion_jax.data.sd3_tokens:SD3Tokens
        diffusion_jax.data.sentence_pieces:SentencePieces
        diffusion_jax.data.words:Bytes
        diffusion_jax.data.words:Words
    """,
    "optimisers": """
        diffusion_jax.train.optim:optimizer
        diffusion_jax.train.optim:partition
    """,
    "averages": """
        diffusion_jax.train.ema:Constant
        diffusion_jax.train.ema:HalfLife
        diffusion_jax.train.ema:Power
    """,
    "samplers": """
        diffusion_jax.diffusion.few_steps:meanflow
        diffusion_jax.diffusion.lcm:lcm
        diffusion_jax.diffusion.multistep:dpm_solver
        diffusion_jax.diffusion.multistep:dpmpp_2m
        diffusion_jax.diffusion.multistep:dpmpp_2m_sde
        diffusion_jax.diffusion.multistep:plms
        diffusion_jax.diffusion.samplers:ancestral
        diffusion_jax.diffusion.samplers:ddim
        diffusion_jax.diffusion.samplers:edm
        diffusion_jax.diffusion.samplers:euler
        diffusion_jax.diffusion.samplers:euler_ancestral
        diffusion_jax.diffusion.samplers:heun
        diffusion_jax.diffusion.unipc:deis
        diffusion_jax.diffusion.unipc:unipc
    """,
    "grids": """
        diffusion_jax.diffusion.lcm:distilled
        diffusion_jax.diffusion.flow_times:flow_match
        diffusion_jax.diffusion.scheduler_times:scheduler
        diffusion_jax.diffusion.times:karras
        diffusion_jax.diffusion.times:leading
        diffusion_jax.diffusion.times:linspace
        diffusion_jax.diffusion.times:log_snr
        diffusion_jax.diffusion.times:respace
        diffusion_jax.diffusion.times:trailing
        diffusion_jax.diffusion.times:uniform
    """,
    "guidance": """
        diffusion_jax.diffusion.guidance:CADS
        diffusion_jax.diffusion.guidance:dynamic_cfg
        diffusion_jax.diffusion.guidance:power_cosine
        diffusion_jax.pipelines.spelling:constant
    """,
}
"""By what they are. A new network, sampler ... that pages are to name gets its line here."""

KINDS = {name: kind for kind, names in PARTS.items() for name in names.split()}
"""'diffusion_jax.<module>:<Name>' -> what it is, a key of `PARTS`."""

SLOTS = {
    "model": "networks",
    "image": "networks",
    "text": "networks",
    "tower": "networks",
    "clip_l": "networks",
    "clip_g": "networks",
    "t5": "networks",
    "first": "networks",
    "last": "networks",
    "disc": "networks",
    "perceptual": "networks",
    "uncertainty": "networks",
    "cond": "conditioners",
    "process": "processes",
    "scale": "scales",
    "times": "times",
    "weight": "weights",
    "first_stage": "tasks",
    "teacher": "tasks",
    "clip": "tasks",
    "losses": "losses",
    "temperature": "losses",
    "beta": "losses",
    "tokenizer": "tokenizers",
    "Joint.parts": "conditioners",
    "partition.parts": "optimisers",
}
"""Option -> what an object that stands for it must be; with the symbol before it where options of
one name differ. Options that take an object and do not stand here are the program's own."""

MOST = 2**31 - 1
"""Of every whole number: counts are int32 on devices."""
SIDE = 16_384
"""Of every picture, in pixels."""

BOUNDS: dict[str, tuple[float | None, float | None]] = {
    # Sizes of networks: what is refused here would be allocated, or traced, before anything else.
    "depth": (0, 1000),
    "layers": (0, 1000),
    "blocks": (0, 1000),
    "transformer": (0, 1000),
    "Discriminator.depth": (0, 20),
    "CodebookVAE.layers": (1, 20),
    "TAE.levels": (1, 20),
    "width": (1, 65_536),
    "LowRes.width": (0, 65_536),
    "GuidanceWeight.width": (0, 65_536),
    "waves": (2, 65_536),
    "SD3Tokens.clip": (2, 65_536),
    "buckets": (4, 65_536),
    "distance": (1, 65_536),
    "t5_context": (0, 65_536),
    "init_width": (1, 65_536),
    "code_width": (1, 65_536),
    "hidden": (1, 2**20),
    "features": (1, 2**20),
    "out": (1, 2**20),
    "channels": (1, 65_536),
    "latent": (1, 65_536),
    "inner": (1, 65_536),
    "head_channels": (1, 65_536),
    "heads": (1, 4096),
    "heads_up": (1, 4096),
    "groups": (1, 65_536),
    "mults": (0.01, 1024),
    "mult_noise": (0, 1024),
    "mult_emb": (0, 1024),
    "attend": (0, SIDE),
    "filter": (None, None),
    "mlp_ratio": (0.01, 1024),
    "windows": (1, 1024),
    "kernel": (1, 1024),
    "grid": (1, 1024),
    "patch": (1, 1024),
    "factor": (1, 1024),
    "context": (1, 65_536),
    "length": (1, 65_536),
    "text_length": (1, 65_536),
    "tokens": (0, 65_536),
    "vocab": (1, 2**24),
    "codes": (0, 2**24),
    "text_codes": (1, 2**24),
    "image_codes": (1, 2**24),
    "dots": (2, 65_536),
    "components": (0, 2**20),
    "num_classes": (0, 2**24),
    "ladder": (None, None),
    # Tables of times.
    "DDPM.steps": (1, 10**6),
    "ViT.steps": (0, 10**6),
    "history": (1, 10_000),
    "last": (-1, MOST),  # the step before the first, where the image is clean
    # Pictures.
    "shape": (0, SIDE),
    "size": (1, SIDE),
    "tile": (1, SIDE),
    # Training.
    "lr": (0, 1e6),
    "clip": (0, None),
    "weight_decay": (0, 1e6),
    "warmup": (0, MOST),
    "eps": (0, 1),
    "b1": (0, 1),
    "b2": (0, 1),
    "powersgd": (0, 4096),
    "optimizer.steps": (1, MOST),
    "Anneal.steps": (1, MOST),
    "ref": (1, MOST),
    # Shares.
    "dropout": (0, 1),
    "drop": (0, 1),
    "augment": (0, 1),
    "rate": (0, 1),
    "mirror": (0, 1),
    "whole": (0, 1),
    "until": (0, 1),
    "MinSNR.gamma": (0, float("inf")),  # weighs x0 by its signal-to-noise ratio
}
"""Option -> (least, most) of its numbers, by name or by symbol and name as in `SLOTS`. Without a
line a whole number is a count, 0 ... MOST, and any other number finite."""
