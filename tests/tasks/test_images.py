"""What every task on images asks of a batch."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.tasks.images import check_shape


@pytest.mark.parametrize("count", [0, 1, 5])
def test_any_number_of_images_of_the_right_shape_passes(count):
    assert check_shape({"image": np.zeros((count, 4, 6, 3))}, (4, 6, 3)) is None


@pytest.mark.parametrize("shape", [(6, 4, 3), (4, 6, 1), (4, 6), (4, 6, 3, 1)])
def test_another_shape_is_named_beside_the_tasks(shape):
    with pytest.raises(ConfigError) as error:
        check_shape({"image": np.zeros((2, *shape))}, (4, 6, 3))
    assert str(error.value) == f"the data's images are {shape}, task.shape is (4, 6, 3): change one of them"
