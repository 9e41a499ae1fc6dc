"""Animations: every frame, large enough to see, as the file that was named."""
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffusion_jax.build import ConfigError
from diffusion_jax.data import animation


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 8, 6, 1), (126, 168)), ((3, 201, 150, 3), (150, 202)), ((3, 128, 130, 3), (130, 128))],
)
def test_an_animation_has_every_frame(tmp_path, shape, size, capsys):
    pytest.importorskip("imageio")
    frames = np.broadcast_to(np.array([0, 120, 255], np.uint8).reshape(3, 1, 1, 1), shape)
    folder = tmp_path / "new"
    files = animation.animated(folder / "x.png", frames, seconds=0.2)
    assert files[0] == folder / "x.gif" and set(files) == set(folder.iterdir())
    assert len(files) == 2 or "pip install imageio-ffmpeg" in capsys.readouterr().out
    with Image.open(files[0]) as gif:
        assert gif.n_frames == 3 and gif.size == size
        assert gif.info["duration"] == 200 and gif.info["loop"] == 0
        grey = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    assert [int(each.min()) for each in grey] == [int(each.max()) for each in grey] == [0, 120, 255]


def test_one_file_is_written_where_one_is_named(tmp_path):
    pytest.importorskip("imageio")
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    frames[1] = 255
    animation.animate(tmp_path / "x.gif", frames, 0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]
    if find_spec("imageio_ffmpeg") is not None:
        animation.animate(tmp_path / "y.mp4", frames, 0.1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.gif", "y.mp4"]


@pytest.mark.parametrize(("out", "missing", "says"), [
    ("x.mp4", "imageio_ffmpeg", "x.mp4: MP4 needs imageio-ffmpeg: pip install imageio-ffmpeg"),
    ("x.gif", "imageio", "x.gif: GIF needs imageio: pip install imageio"), ("x.gif", "imageio_ffmpeg", None)])
def test_what_is_not_installed_is_said_before_the_work(monkeypatch, out, missing, says):
    monkeypatch.setattr(animation, "find_spec", lambda name: None if name == missing else name)
    if says is None:
        animation.check(out)
        return
    with pytest.raises(ConfigError) as error:
        animation.check(out)
    assert str(error.value) == says
