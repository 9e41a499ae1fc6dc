"""Everything goes with everything from the command line: each sampler, on both backbones, under each kind of guidance."""
import json

import jax.numpy as jnp
import numpy as np
import pytest
from pages import page
from stubs import random_params

from diffusion_jax.pipelines.cascade import STRIDE
from diffusion_jax.pipelines.spelling import SAMPLERS
from diffusion_jax.runs.folder import save_start
from diffusion_jax.train.state import plain, task_of

LABEL = {"name": "diffusion_jax.models.cond:Label", "num_classes": 10, "width": 64}
LOW_RES = {"name": "diffusion_jax.models.cond:LowRes", "factor": 2, "augment": 0.5, "width": 64}
GUIDANCE = {
    "none": (),
    "cfg": ("--guidance", 3),
    "classifier": ("--classifier", "CLASSIFIER", "--classifier_scale", 30),
    "weak": ("--weak", "WEAK", "--guidance", 3),
    "cads": ("--cads", "s=0.5,tau1=0.1,tau2=0.9"),
    "rescale": ("--guidance", 3, "--phi", 0.7),
}
PAIRS = [(network, sampler) for network in ("adm", "dit") for sampler in SAMPLERS if sampler != "meanflow"]
PAIRS += [(network, sampler) for network in ("edm2", "diffit") for sampler in ("ddim", "ancestral", "edm")]


def write(folder, config):
    """A run's folder with random weights, none of them zero."""
    task = task_of(config)
    batch = {"image": jnp.zeros((1, *task.shape)), "label": jnp.zeros(1, jnp.int32)}
    save_start(folder, config, random_params(task, batch, scale=0.2))
    return folder


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    """The folder of a DiT and an upsampler."""
    root, upsampler = tmp_path_factory.mktemp("table"), plain(page("digits_adm"))
    upsampler["task"] |= {"cond": {"name": "diffusion_jax.models.cond:Joint", "parts": [LABEL, LOW_RES]}, "shape": [16, 16, 1]}
    for name, config in (("dit", plain(page("digits"))), ("upsampler", upsampler)):
        write(root / name, config)
    return root


@pytest.fixture(scope="module")
def folders(cascade):
    """Those, and of an ADM and a classifier."""
    adm = plain(page("digits_adm"))
    adm["task"] |= {"cond": LABEL, "drop": {"label": 0.1}}
    for name, config in (("adm", adm), ("classifier", plain(page("digits_classifier")))):
        write(cascade / name, config)
    return cascade


@pytest.fixture(scope="module")
def all_folders(folders):
    """Those, and of an EDM2, a DiffiT and another DiT."""
    dit = plain(page("digits"))
    for name, config in (("edm2", plain(page("digits_edm2"))), ("diffit", plain(page("cifar10_diffit"))),
                         ("weak", dit | {"model": dit["model"] | {"depth": 2}})):
        write(folders / name, config)
    return folders


@pytest.fixture(scope="module")
def plainly():
    """(network, sampler) -> its images without guidance."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize(("network", "sampler"), PAIRS)
def test_every_sampler_network_and_guidance(cli, all_folders, plainly, tmp_path, network, sampler, guidance):
    out = tmp_path / "x.npz"
    flags = [all_folders / flag.lower() if flag in ("CLASSIFIER", "WEAK") else flag for flag in GUIDANCE[guidance]]
    done = cli("--workdir", all_folders / network, "--mode", "sample", "--num", 4, "--steps", 4, "--seed", 1, "--clip", 1,
               "--sampler", sampler, "--out", out, *flags)
    assert done.code == 0, done.err
    with np.load(out) as found:
        images = found["arr_0"]
    assert images.shape == (4, 8, 8, 1) and images.std() > 1
    if guidance == "none":
        plainly[network, sampler] = images
    elif (network, sampler) in plainly:
        assert (images != plainly[network, sampler]).mean() > 0.02                   # the guidance does something


@pytest.mark.slow
def test_a_classifier_of_another_size_is_refused(cli, folders, tmp_path):
    config = plain(page("digits_classifier"))
    config["task"]["shape"] = (4, 4, 1)
    small = write(tmp_path / "small", config)
    done = cli("--workdir", folders / "dit", "--mode", "sample", "--num", 1, "--classifier", small, "--out", tmp_path / "x.png")
    assert done.code == 2 and "the classifier sees images of (4, 4, 1)" in done.err
    wrong = cli("--workdir", folders / "dit", "--mode", "sample", "--num", 1, "--classifier", folders / "adm")
    assert wrong.code == 2 and "holds a diffusion model: give the folder of" in wrong.err
    alone = cli("--workdir", folders / "classifier", "--mode", "sample", "--num", 1)
    assert alone.code == 2 and "holds a noisy classifier: give the folder of a diffusion model" in alone.err


@pytest.mark.slow
def test_a_cascade_gives_what_its_stages_give_one_after_the_other(cli, folders, tmp_path):
    base, cascade, alone = (tmp_path / f"{name}.npz" for name in ("base", "cascade", "alone"))
    common = ("--mode", "sample", "--num", 3, "--seed", 5)
    assert cli("--workdir", folders / "dit", *common, "--out", base).code == 0
    done = cli("--workdir", folders / "dit", *common, "--upsampler", folders / "upsampler", "--out", cascade)
    assert done.code == 0, done.err
    done = cli("--workdir", folders / "upsampler", *common[:4], "--seed", 5 + STRIDE, "--low_res", base, "--out", alone)
    assert done.code == 0, done.err
    base, cascade, alone = (np.load(path) for path in (base, cascade, alone))
    assert cascade["arr_0"].shape == (3, 16, 16, 1)
    np.testing.assert_array_equal(cascade["arr_1"], alone["arr_1"])
    assert np.abs(cascade["arr_0"].astype(int) - alone["arr_0"]).mean() < 4              # the base was rounded to bytes between
    noisy = cli("--workdir", folders / "upsampler", *common, "--low_res", tmp_path / "base.npz", "--augment", 0.4, "--out",
                tmp_path / "noisy.npz")
    assert noisy.code == 0, noisy.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--workdir", "upsampler", "--num", 1), "conditioned on 'low_res'"),
        (("--workdir", "upsampler", "--num", 1, "--low_res", "LARGE"), "trained on low_res of (8, 8, 1), not (16, 16, 1)"),
        (("--workdir", "dit", "--num", 1, "--upsampler", "dit"), "must read low_res"),
        (("--workdir", "dit", "--num", 1, "--classifier_scale", 2), "needs a --classifier"),
        (("--workdir", "dit", "--num", 1, "--augment", 2), "augment is 0 ... 1, got 2.0"),
        (("--workdir", "upsampler", "--num", 1, "--low_res", "missing.npz"), "there is no"),
    ],
)
def test_what_does_not_go_together_is_one_line(cli, cascade, tmp_path, flags, says):
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((2, 16, 16, 1), np.uint8))
    found = {"upsampler": cascade / "upsampler", "dit": cascade / "dit", "LARGE": tmp_path / "large.npz"}
    done = cli("--mode", "sample", "--out", tmp_path / "x.npz", *(found.get(flag, flag) for flag in flags))
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.slow
def test_bits_per_dim_and_a_classifier_s_accuracy(cli, folders):
    done = cli("--workdir", folders / "dit", "--mode", "evaluate", "--metric", "bpd", "--num", 6, "--steps", 4)
    assert done.code == 0, done.err
    report = json.loads((folders / "dit" / "report.json").read_text())
    assert (report["images"], report["steps"]) == (6, 4) and 0 < report["of them prior"] < 0.1 < report["bits/dim"]
    done = cli("--workdir", folders / "classifier", "--mode", "evaluate", "--num", 20)
    assert done.code == 0, done.err
    report = json.loads((folders / "classifier" / "report.json").read_text())
    assert report["images"] == 20 and all(0 <= value <= 1 for key, value in report.items() if key.startswith("accuracy"))
    wrong = cli("--workdir", folders / "classifier", "--mode", "evaluate", "--metric", "bpd")
    assert wrong.code == 2 and "unknown metric of a noisy classifier 'bpd'" in wrong.err
