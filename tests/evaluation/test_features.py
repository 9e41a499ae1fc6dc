"""In whose features, and against what: references of every kind, what is kept under which name, and what is refused."""
import pickle

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import features
from diffusion_jax.metrics.extract import Network


def test_edm2s_statistics_are_read_by_network(network, tmp_path):
    content = {"fid": {"mu": np.ones(6), "sigma": np.eye(6)}, "fd_dinov2": {"mu": np.zeros(4), "sigma": np.eye(4)}}
    path = tmp_path / "img512.pkl"
    path.write_bytes(pickle.dumps(content))
    for label, size in (("inception, tensorflow", 6), ("dinov2", 4)):
        other = Network(label, network.see, network.params)
        assert features.statistics_in(path, other)["features"].cov.shape == (size, size)
    with pytest.raises(ConfigError, match="holds no statistics of stub"):
        features.statistics_in(path, network)


@pytest.mark.parametrize(("where", "resize", "says"), [
    (None, None, "--metric features needs --features"),
    ("runs/x", "clean_fid", "--resize is a convention of --features inception=FILE"),
    ("x=clean_fid", "clean_fid", "--resize is a convention of --features inception=FILE"),
    ("dinov2=x", "clean_fid", "--resize is a convention of --features inception=FILE"),
    ("inception=x", "clean", "unknown resize convention 'clean': did you mean 'clean_fid'"),
    ("incepton=x", None, "did you mean 'inception'"),
    (__file__, None, "is a file: say whose weights it holds"),
    ("inception", None, "--features inception: say where its weights are, inception=FILE"),
    ("dinov2", None, "--features dinov2: say where its weights are, dinov2=FILE"),
    ("inception=", None, "say where its weights are, inception=FILE"),
    ("runs/c=ls", None, "--features runs/c=ls: there is no such folder: give that of a classifier or of a CLIP, inception=FILE"),
    ("../c=1,d=2", None, "there is no such folder"), ("=x", None, "there is no such folder"), ("", None, "needs --features"),
])
def test_networks_that_nobody_knows(where, resize, says):
    for function in (features.named, features.network_of):
        with pytest.raises(ConfigError, match=says) as error:
            function(where, resize)
        assert "\n" not in str(error.value)


def test_a_name_may_have_the_sign_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg=2").mkdir()
    (tmp_path / "inception").mkdir()
    assert features.named("cfg=2") == ("", "cfg=2") and features.named("inception") == ("", "inception")
    assert features.named("inception=a=b.pth", "clean_fid") == ("inception", "a=b.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert features.named("dinov2=~/x.pth") == ("dinov2", str(tmp_path / "x.pth"))


@pytest.mark.slow
def test_a_classifier_trained_here_is_a_network(judge, fresh):
    network = features.network_of(judge.folder)
    seen = jax.jit(network.see)(network.params, np.zeros((2, 8, 8, 1), np.uint8))
    assert seen["logits"].shape == (2, 10) and len(seen["features"]) == 2
    with pytest.raises(ConfigError, match="choose another"):
        network.see(network.params, np.zeros((2, 9, 9, 1), np.uint8))
    with pytest.raises(ConfigError, match="holds a diffusion model: give the folder of a noisy classifier or of a CLIP"):
        features.network_of(fresh("digits").folder)


@pytest.mark.slow
def test_a_clip_trained_here_is_a_network(fresh):
    """Its features are the directions of its embeddings, so that a channel is of the size 1, and tell nothing of classes."""
    clip = fresh("digits_clip")
    network = features.network_of(clip.folder)
    images = np.random.default_rng(0).integers(0, 256, (3, *clip.task.shape), dtype=np.uint8)
    seen = network.see(network.params, images)
    directions = clip.task.encode_image(clip.model.params, images / np.float32(127.5) - 1)
    assert set(seen) == {"features"}
    assert np.allclose((seen["features"] ** 2).mean(-1), 1, atol=1e-5)
    assert np.allclose(seen["features"] / np.linalg.norm(seen["features"], axis=-1, keepdims=True), directions, atol=1e-5)
    with pytest.raises(ConfigError, match="--features is a CLIP of images of"):
        network.see(network.params, images[:, 1:])


def test_what_is_kept_has_a_name_of_all_that_it_depends_on(network, digits, tmp_path):
    images = features.images_at(str(digits / "digits.npz"))
    other = Network("stub", network.see, network.params + 1)

    def kept(network, identity, **changes):
        extractor = features.Extractor(network, str(tmp_path), **{"batch": 20} | changes)
        return extractor(images, identity).files[0].parent.name

    names = [kept(network, {}), kept(other, {}), kept(network, {"step": 1}), kept(network, {}, batch=30),
             kept(network, {}, blur=1.0)]
    assert len(set(names)) == 5 and kept(network, {}) == names[0]


def pictures(path, value):
    for i in range(3):
        save_png(path / f"{i}.png", np.full((8, 8, 1), value + i, np.uint8))


def batch(path, value):
    np.savez(path, arr_0=np.arange(3, dtype=np.uint8)[:, None, None, None] + np.full((1, 8, 8, 1), value, np.uint8))


@pytest.mark.parametrize(("name", "write", "of_page"), [("x", pictures, False), ("x.npz", batch, False), ("x", pictures, True)])
def test_a_reference_that_was_replaced_is_looked_at_again(network, tmp_path, name, write, of_page):
    """With other pictures of the same number, sizes and names, in a folder, in an .npz, in the data of a page."""
    extractor = features.Extractor(network, str(tmp_path / "work"), 2)
    data = {"train": dict(name="diffusion_jax.data.folder:Folder", path=str(tmp_path / name)),
            "decode": dict(name="diffusion_jax.data.image:Decode", size=8, channels=1)}

    def mean():
        path = None if of_page else str(tmp_path / name)
        return features.reference_of(extractor, path, data if of_page else None).moments["features"].mean

    means = []
    for value in (10, 20, 10):
        write(tmp_path / name, value)
        means.append(mean())
    assert np.abs(means[1] - means[0]).max() > 0.1
    np.testing.assert_array_equal(means[2], means[0])
    np.testing.assert_allclose(means[1], (np.full((1, 64), 21) / 255 @ network.params)[0], rtol=1e-5)


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize(("name", "content", "says"), [
    ("bad/0.png", b"\x89PNG cut", "0.png: cannot read this image"),
    ("odd.npz", b"no zip", "is not an .npz"),
    ("evil.pkl", pickle.dumps({"fid": Evil()}), "refused: it names builtins.print, which is code"),
    ("cut.pkl", pickle.dumps({"fid": np.ones(9)})[:50], "refused: pickle data was truncated"),
])
def test_references_that_do_not_read(refused, digits, tmp_path, capsys, name, content, says):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    refused(says, images=str(digits / "digits.npz"), reference=str(tmp_path / name.partition("/")[0]))
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize(("arrays", "says"), [
    (dict(x=np.ones(3)), "holds no images arr_0 nor statistics"),
    (dict(mu=np.full(6, np.nan), sigma=np.eye(6)), "no statistics of features"),
    (dict(mu=np.ones(6), sigma=np.eye(6), network="inception, clean_fid"), "made with inception, clean_fid, not with stub"),
    (dict(mu=np.ones(2048), sigma=np.eye(2048)), "made with another network"),
])
def test_statistics_that_are_none_of_this_network(refused, digits, tmp_path, arrays, says):
    np.savez(tmp_path / "x.npz", **arrays)
    refused(says, images=str(digits / "digits.npz"), reference=str(tmp_path / "x.npz"))
