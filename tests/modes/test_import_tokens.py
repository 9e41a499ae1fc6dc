"""Published token models with drawn weights, in the files that they come in: imported, measured, drawn from."""
import json

import jax
import numpy as np
import pytest
from dvae_keys import official_shapes
from golden_case import load as load_case
from test_import_weights import GOLDENS

from diffusion_jax.models.dvae import DVAE
from diffusion_jax.pretrained import dvae as pretrained
from diffusion_jax.train.checkpoint import load

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow
DALLE = GOLDENS / "dalle"


def imported(cli, system, source, run, official=None):
    """The command's result."""
    told = []
    if official is not None:
        run.parent.mkdir(parents=True, exist_ok=True)
        file = run.parent / f"{run.name}.json"
        file.write_text(json.dumps(official))
        told = ["--official", file]
    return cli("--mode", "import_weights", "--system", system, "--source", source, "--workdir", run, *told)


def published_dvae(folder, codes):
    """encoder.pt and decoder.pt of a small discrete VAE under OpenAI's names; two pixels for a token along a side."""
    model = DVAE(codes=codes, width=8, mults=(1, 2), depth=1, init_width=4)
    params = model.init(jax.random.key(0), np.zeros((1, 4, 4, 3)))["params"]
    shapes = {f"{half}/{rule}": shape for half in pretrained.FILES for rule, shape in official_shapes(half, codes=codes).items()}
    weights = pretrained.revert(params, shapes)
    folder.mkdir()
    for half in pretrained.FILES:
        part = {key.removeprefix(f"{half}/"): torch.from_numpy(np.array(w)) for key, w in weights.items() if key.startswith(half)}
        torch.save(part, folder / f"{half}.pt")
    return folder


@pytest.mark.parametrize("name,options,codes,grid,length", [
    ("ar_mindalle", "hparams", 22, 3, 6), ("ar_rudalle_v3", "kwargs", 25, 4, 7),
])
def test_a_transformer_and_its_first_stage_draw_what_prompts_say(cli, tmp_path, name, options, codes, grid, length):
    case = load_case(DALLE / f"{name}.json")
    torch.save({key: torch.from_numpy(np.array(w)) for key, w in case.weights.items()}, tmp_path / "model.ckpt")
    done = imported(cli, "dvae", published_dvae(tmp_path / "dvae", codes), tmp_path / "first", {"image_size": 2 * grid})
    assert done.code == 0 and "parameters of" in done.out, done.err
    words = dict(name="diffusion_jax.data.words:Words", words=["a", "red", "dog"], length=length)
    official = {**case.config[options], "first_stage": str(tmp_path / "first"), "tokenizer": words}
    done = imported(cli, "dalle", tmp_path / "model.ckpt", tmp_path / "run", official)
    assert done.code == 0 and "parameters of" in done.out, done.err
    _, task, params = load(tmp_path / "run")
    assert task.model.image_codes == codes and task.shape == (2 * grid, 2 * grid, 3)
    key = "tok_emb_img.weight" if name == "ar_mindalle" else "image_embeddings.weight"
    np.testing.assert_array_equal(params["model"]["image"]["embedding"], case.weights[key])
    out = tmp_path / "x.npz"
    done = cli("--workdir", tmp_path / "run", "--mode", "sample", "--prompt", "a red dog", "--num", 2, "--top_k", 5, "--out", out)
    assert done.code == 0, done.err
    with np.load(out) as found:
        assert found["arr_0"].shape == (2, 2 * grid, 2 * grid, 3)


def test_what_does_not_go_together_is_refused(cli, tmp_path):
    case = load_case(DALLE / "ar_mindalle.json")
    torch.save({key: torch.from_numpy(np.array(w)) for key, w in case.weights.items()}, tmp_path / "model.ckpt")
    assert imported(cli, "dvae", published_dvae(tmp_path / "dvae", 25), tmp_path / "first", {"image_size": 6}).code == 0
    official = {**case.config["hparams"], "first_stage": str(tmp_path / "first")}
    other = imported(cli, "dalle", tmp_path / "model.ckpt", tmp_path / "run", official)
    assert other.code == 2 and "25 codes, the transformer reads" in other.err
    alone = imported(cli, "dalle", tmp_path / "model.ckpt", tmp_path / "run", case.config["hparams"] | {"tokenizer": {}})
    assert alone.code == 2 and "give first_stage too" in alone.err
    plain = imported(cli, "dalle", tmp_path / "model.ckpt", tmp_path / "run", case.config["hparams"])
    assert plain.code == 0
    silent = cli("--workdir", tmp_path / "run", "--mode", "sample", "--prompt", "a dog")
    assert silent.code == 2 and "came without a tokenizer" in silent.err
