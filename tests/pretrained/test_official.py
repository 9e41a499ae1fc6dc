"""--official, of any system: what it lacks is named in one line."""
import json

import numpy as np
import pytest
from pages import ask

from diffusion_jax.build import ConfigError


@pytest.mark.parametrize("system, official, lacks", [
    ("dit", {"patch_size": 2}, "hidden_size"), ("diffit", {"hiden_size": 8}, "patch_size"),
    ("adm", {"model_channels": 8}, "num_res_blocks"), ("glide", {"model_channels": 8}, "num_res_blocks"),
    ("sd", {"unet_config": {}}, "params"),
])
def test_options_that_lack_something_are_refused(tmp_path, system, official, lacks):
    keys = ("model.diffusion_model.x", "first_stage_model.x") if system == "sd" else ("x",)
    np.savez(tmp_path / "x.npz", **{key: np.zeros(1) for key in keys})
    (tmp_path / "o.json").write_text(json.dumps(official))
    given = {"system": system, "source": str(tmp_path / "x.npz"), "official": str(tmp_path / "o.json")}
    with pytest.raises(ConfigError, match=f"there is no '{lacks}' in --official .*o.json, or in .*: system {system} needs it"):
        ask("import_weights", tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
