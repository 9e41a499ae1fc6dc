"""unCLIPs in diffusers' folders: those of diffusers itself come back bit for bit, and diffusers sees what we see."""
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from exports import GOLDENS, channels_first, channels_last, same
from golden_case import load as golden

from diffusion_jax.build import build
from diffusion_jax.pretrained import export, package, systems, unclip
from diffusion_jax.train.state import task_of
from pretrained.test_karlo_export import CONTEXT, SIDE, F, back, drawn, joined


def files_of(folder, case):
    """Writes weights under 'a/b' and configs as folders of diffusers."""
    for name in {key.partition("/")[0] for key in case.weights}:
        (folder / name).mkdir(parents=True)
        part = {key.partition("/")[2]: w for key, w in case.weights.items() if key.startswith(f"{name}/")}
        package.save_weights(folder / name / "model.safetensors", part)
        config = case.config["super_res" if name.startswith("super_res") else name]
        (folder / name / "config.json").write_text(json.dumps(config))
    for name, config in zip(("prior", "decoder", "super_res"), case.config["schedulers"], strict=True):
        (folder / f"{name}_scheduler").mkdir()
        config = {"_class_name": "UnCLIPScheduler", **config}
        (folder / f"{name}_scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def test_diffusers_own_folders_come_back_bit_for_bit(tmp_path):
    case = golden(GOLDENS / "unclip" / "diffusers_unclip_pipeline.json")
    page, params = systems.load("karlo", files_of(tmp_path / "theirs", case))
    written = export.package(page, params, "diffusers")
    found = {f"{Path(name).parent}/{key}": w for name, part in written.files.items() if name.endswith(".safetensors")
             for key, w in part.items()}
    assert found.keys() == case.weights.keys()
    for key, value in case.weights.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    for name in ("prior", "decoder", "text_proj", "super_res_first"):
        want = case.config["super_res" if name.startswith("super_res") else name]
        config = written.files[f"{name}/config.json"]
        assert {key: config[key] for key in want if key in config} == {key: want[key] for key in want if key in config}
        assert not {"block_out_channels", "attention_head_dim", "num_layers"} & (want.keys() - config.keys()) or "super" in name
    for name, want in zip(("prior", "decoder", "super_res"), case.config["schedulers"], strict=True):
        assert want.items() <= written.files[f"{name}_scheduler/scheduler_config.json"].items()
    again, params_again = back(tmp_path / "ours", written)
    same(params, params_again)
    assert json.dumps(again) == json.dumps(page) and "hook" not in written.code


@pytest.mark.slow
def test_diffusers_sees_the_same(tmp_path):
    """Every network of the pipeline, the text with its embedding at one length, and a picture."""
    torch, _, _ = (pytest.importorskip(module) for module in ("torch", "diffusers", "transformers"))
    page, params = joined(drawn())
    written = export.package(page, params, "diffusers")
    package.write(tmp_path / "out", written.files)
    names: dict = {}
    code = written.code.replace("FOLDER", str(tmp_path / "out")).replace("GUIDANCE", "8.0").replace("STEPS", "3")
    exec(code.replace("PROMPT", "a cat").replace("sample.png", str(tmp_path / "sample.png")), names)
    pipe, texts = names["pipe"], ["a cat", "two red dogs"]
    rng = np.random.default_rng(0)
    task, first = task_of(page), params["first_stage"]
    tokens = np.stack([build(page["data"]["decode"]["tokenizer"])(text) for text in texts])
    raw = dict(task.first_stage.embed_text(first, jnp.asarray(tokens)))
    inputs = pipe.tokenizer(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt")
    np.testing.assert_array_equal(inputs.input_ids.numpy(), tokens)
    x, y = rng.standard_normal((2, 2, F)).astype(np.float32)
    noisy = rng.standard_normal((2, SIDE, SIDE, 3)).astype(np.float32)
    large, small = rng.standard_normal((2, 2, 2 * SIDE, 2 * SIDE, 3)).astype(np.float32)
    times = np.array([3, 777])
    t = torch.tensor(times)
    with torch.no_grad():
        text = pipe.text_encoder(inputs.input_ids)
        mask = inputs.attention_mask.bool()
        embedding = pipe.prior(torch.tensor(x), t, text.text_embeds, text.last_hidden_state, mask)[0]
        states, vec = pipe.text_proj(image_embeddings=torch.tensor(y), prompt_embeds=text.text_embeds,
                                     text_encoder_hidden_states=text.last_hidden_state, do_classifier_free_guidance=False)
        seen = torch.nn.functional.pad(mask, (4, 0), value=True)
        picture = pipe.decoder(channels_first(noisy), t, states, vec, attention_mask=seen).sample
        behind = torch.cat([channels_first(large), channels_first(small)], dim=1)
        enlarged = [net(behind, t).sample for net in (pipe.super_res_first, pipe.super_res_last)]

    def near(theirs, ours):
        np.testing.assert_allclose(np.asarray(theirs), ours, atol=1e-5, rtol=0)

    near(text.text_embeds, raw["clip_text"])
    near(text.last_hidden_state, raw["text_states"])
    models = {name: task_of(part) for name, part in page["parts"].items()}
    weights = {name: part["model"] for name, part in params["parts"].items()}
    made = models["prior"].model.apply({"params": weights["prior"]}, x, times, models["prior"].cond.apply({}, raw))
    near(embedding, made)
    cond = task.embed(params, raw | {"clip_image": y})
    near(vec, cond["vec"])
    near(states, cond["seq"])
    near(channels_last(picture), task.model.apply({"params": params["model"]}, noisy, times, cond))
    for net, theirs in zip(("first", "last"), enlarged, strict=True):
        model = getattr(models["upsampler"].model, net)
        near(channels_last(theirs), model.apply({"params": weights["upsampler"][net]}, large, times, {"cat": small}))
    for name, ours in zip(unclip.STATISTICS, ("mean", "std"), strict=True):
        near(pipe.prior.state_dict()[name][0], first[ours])
    assert (tmp_path / "sample.png").is_file()
