"""The keys of openai/DALL-E's discrete VAE at a small size, for tests that write its files."""


def official_shapes(half: str, width: int = 8, codes: int = 12) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the encoder or the decoder of a network with two groups of one block."""
    kernels = (3, 3, 3, 1) if half == "encoder" else (1, 3, 3, 3)
    widths = (width, 2 * width) if half == "encoder" else (2 * width, width)
    first = (width, 3, 7, 7) if half == "encoder" else (4, codes, 1, 1)
    found, inside = {"blocks.input.w": first}, first[0]
    for group, out in enumerate(widths, 1):
        block = f"blocks.group_{group}.block_1"
        if inside != out:
            found[f"{block}.id_path.w"] = (out, inside, 1, 1)
        channels = (inside, out // 4, out // 4, out // 4, out)
        for i, size in enumerate(kernels):
            found[f"{block}.res_path.conv_{i + 1}.w"] = (channels[i + 1], channels[i], size, size)
        inside = out
    found["blocks.output.conv.w"] = (codes if half == "encoder" else 6, inside, 1, 1)
    return {name: shape for key, w in found.items() for name, shape in ((key, w), (f"{key[:-1]}b", w[:1]))}
