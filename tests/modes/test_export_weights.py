"""export_weights: a run trained here becomes a folder for others, with a card, whole or not at all."""
import json

import jax
import numpy as np
import pytest
from exports import GOLDENS
from golden_case import load as golden
from pages import ask, files, refused
from pretrained.test_karlo_hf_export import files_of

from diffusion_jax.pretrained.reader import read
from diffusion_jax.runs.folder import open_run
from diffusion_jax.train.checkpoint import load

EXPORT = ("--mode", "export_weights")


def test_a_run_is_written_and_imported_again(cli, tiny_run, tmp_path):
    out = tmp_path / "out"
    before = files(tiny_run)
    done = cli(*EXPORT, "--workdir", tiny_run, "--to", "original", "--out", out)
    assert done.code == 0 and "the official DiT: 4 files" in done.out and "predicts V" in done.out, done.err
    assert sorted(files(out)) == ["README.md", "config.json", "model.safetensors", "samples.png"] and files(tiny_run) == before
    card = (out / "README.md").read_text()
    assert "| step | 4 |" in card and "| classes | 10 |" in card and "accuracy" in card
    # By the very command that the card gives.
    command = next(line for line in card.splitlines() if line.startswith("python -m diffusion_jax.main"))
    words = command.replace(" ./", f" {out}/").replace("runs/dit", str(tmp_path / "back")).split()[3:]
    done = cli(*words)
    assert done.code == 0, done.err
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "back")[2], load(tiny_run)[2])
    again = cli(*EXPORT, "--workdir", tiny_run, "--to", "original", "--out", out)
    assert refused(again, "is not empty: choose another folder")


def test_a_run_is_given_on_without_its_training_in_half_the_bytes(cli, tiny_run, tmp_path):
    out = tmp_path / "out"
    done = cli(*EXPORT, "--workdir", tiny_run, "--to", "diffusion_jax", "--dtype", "float16", "--out", out)
    assert done.code == 0 and "diffusion_jax: " in done.out, done.err
    own, given = open_run(tiny_run), open_run(out)

    def same(a, b):
        assert b.dtype == np.float32                                            # in memory
        np.testing.assert_array_equal(np.asarray(a).astype(np.float16), np.asarray(b))

    jax.tree.map(same, own.model.params, given.model.params)
    assert given.step == own.step and given.class_names == own.class_names and set(given.config) == {"task", "model", "sample"}
    card = (out / "README.md").read_text()
    assert 'dj.pipeline(".")' in card and (out / "samples.png").is_file() and str(tiny_run) not in card
    done = cli("--mode", "sample", "--workdir", out, "--num", "2", "--out", tmp_path / "x.npz")
    assert done.code == 0, done.err
    size = {folder: sum(file.stat().st_size for file in (folder / "checkpoints" / "4").rglob("*")) for folder in (tiny_run, out)}
    assert size[out] < size[tiny_run] / 4


def test_which_weights_and_of_which_type(tiny_run, tmp_path):
    ask("export_weights", tiny_run, to="diffusers", out=str(tmp_path / "out"), which="params", step=2, dtype="bfloat16")
    weights = read(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    _, _, params = load(tiny_run, "params", 2)
    want = np.asarray(params["model"]["final"]["linear"]["kernel"]).T
    assert {str(w.dtype) for w in weights.values()} == {"bfloat16"}
    np.testing.assert_allclose(weights["proj_out_2.weight"].astype(np.float32), want, rtol=0.01)
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert config["prediction_type"] == "v_prediction" and config["timestep_spacing"] == "trailing"
    assert "| step | 2 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("options, says", [
    (("--to", "original"), "mode export_weights needs --out"), (("--out", "OUT"), "mode export_weights needs --to"),
    (("--to", "diffuser", "--out", "OUT"), "did you mean 'diffusers'"),
    (("--to", "original", "--out", "OUT", "--dtype", "int8"), "dtype"),
    (("--to", "original", "--out", "OUT", "--which", "emma"), "unknown weights"),
    (("--to", "original", "--out", "RUN"), "is not empty"),
    (("--to", "original", "--out", "OUT", "--num", "3"), "--num belongs to modes"),
])
def test_what_is_refused_leaves_nothing(cli, tiny_run, tmp_path, options, says):
    names = {"OUT": tmp_path / "out", "RUN": tiny_run}
    done = cli(*EXPORT, "--workdir", tiny_run, *(names.get(word, word) for word in options))
    assert refused(done, says), done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_unclip_goes_with_its_prior_and_its_upsampler(cli, tmp_path):
    case = golden(GOLDENS / "unclip" / "diffusers_unclip_pipeline.json")
    ask("import_weights", tmp_path / "run", system="karlo", source=str(files_of(tmp_path / "theirs", case)))
    done = cli(*EXPORT, "--workdir", tmp_path / "run", "--to", "diffusers", "--out", tmp_path / "out")
    assert done.code == 0 and "diffusers' UnCLIPPipeline" in done.out, done.err
    for folder in {key.partition("/")[0] for key in case.weights}:
        [file] = (tmp_path / "out" / folder).glob("*.safetensors")
        for key, value in read(file).items():
            np.testing.assert_array_equal(value, case.weights[f"{folder}/{key}"], err_msg=key)
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"] == "UnCLIPPipeline"
    done = cli(*EXPORT, "--workdir", tmp_path / "run" / "prior", "--to", "original", "--out", tmp_path / "prior")
    assert refused(done, "which these left with their decoder (first_stage)")
