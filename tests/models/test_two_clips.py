"""What texts through two CLIPs share: the empty text, and what is refused."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip import TextTower
from diffusion_jax.models.two_clips import check_skip, check_tokens, empty_rows

TOWER = TextTower(None, 30, 5, 8, 2, 2)


def test_the_empty_text_is_filled_up_in_two_ways():
    small, large = empty_rows(TOWER, 5)
    assert small.tolist() == [28, 29, 29, 29, 29] and large.tolist() == [28, 29, 0, 0, 0]
    assert small.dtype == large.dtype == np.int32


def test_a_layer_of_every_tower_stays():
    check_skip((TOWER, TOWER.clone(layers=9)), 1)
    for skip in (-1, 2):
        with pytest.raises(ConfigError, match=f"leaves out 0 ... 1 of the 2 layers of a CLIP, got {skip}"):
            check_skip((TOWER.clone(layers=9), TOWER), skip)


@pytest.mark.parametrize("tokens", [np.zeros((2, 9), int), np.zeros(10, int), np.zeros((2, 10))])
def test_what_is_no_batch_of_tokens(tokens):
    check_tokens({"tokens": np.zeros((2, 10), int)}, 10, "5 of each CLIP")
    with pytest.raises(ConfigError, match=r"tokens \[B, 10\] int, 5 of each CLIP, not .*\)"):
        check_tokens({"tokens": tokens}, 10, "5 of each CLIP")
