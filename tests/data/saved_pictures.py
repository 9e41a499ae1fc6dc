"""What the tests of files of pictures save: pixels, and what is said of them."""
import numpy as np

META = {
    "prompt": "a cat\nin “Zürich” \u2028 猫",
    "seed": 7,
    "recipe": {"steps": 50, "guidance": 3.0},
}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
