"""What a page may ask and send has bounds."""
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.studio import bounds


def test_texts_and_numbers_have_bounds():
    assert bounds.text("a", "  x ") == "x" and bounds.text("a", "") is None and bounds.text("a", None) is None
    for value in ("x" * (bounds.LETTERS + 1), 3, ["x"]):
        with pytest.raises(ConfigError, match="at most"):
            bounds.text("a", value)
    for value in (0, 65, 2.5, "x", None, True, float("nan")):
        with pytest.raises(ConfigError):
            bounds.whole("number", value, 1, 64)


@pytest.mark.parametrize("data", [None, b"", b"x" * (bounds.UPLOAD + 1)], ids=["none", "empty", "large"])
def test_a_file_has_a_size(data):
    with pytest.raises(ConfigError, match="send a file of at most 16 MB"):
        bounds.file(data)
    assert bounds.file(b"x") == b"x"
