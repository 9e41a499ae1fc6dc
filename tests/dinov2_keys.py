"""The keys of DINOv2's published file, and weights under them."""
import numpy as np


def published(width=1024, depth=24, grid=37, gated=0, registers=0):
    """Key -> shape of the official file."""
    keys = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + grid**2, width), "mask_token": (1, width),
            "patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,),
            "norm.weight": (width,), "norm.bias": (width,)}
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width),
              "mlp.fc2": (width, 4 * width)}
    if gated:
        layers = {name: shape for name, shape in layers.items() if "mlp" not in name}
        layers |= {"mlp.w12": (2 * gated, width), "mlp.w3": (width, gated)}
    if registers:
        keys["register_tokens"] = (1, registers, width)
    for i in range(depth):
        keys |= {f"blocks.{i}.{name}": (width,) for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
                                                             "ls1.gamma", "ls2.gamma")}
        keys |= {f"blocks.{i}.{name}.weight": shape for name, shape in layers.items()}
        keys |= {f"blocks.{i}.{name}.bias": shape[:1] for name, shape in layers.items()}
    return keys


def weights(rng, **options):
    return {key: rng.normal(0, 0.2, shape).astype(np.float32) for key, shape in published(**options).items()}
