"""A tiny unCLIP of diffusers, saved, imported by our command, and sampled by both from the same noise."""
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_case import load as golden
from pages import ask

from diffusion_jax.build import ConfigError
from diffusion_jax.data.clip_bpe import ClipBPE
from diffusion_jax.pipelines import sampling
from diffusion_jax.pretrained import karlo
from diffusion_jax.runs.folder import first_stage
from diffusion_jax.tasks.prior import DiffusionPrior
from diffusion_jax.train.checkpoint import load

CONTEXT, FEATURES, STEPS = 16, 24, {"prior": 5, "decoder": 4, "upsampler": 7}
GOLDENS = Path(__file__).parent.parent / "goldens"
PROMPTS = ["a cat", "two red dogs"]


def pipeline(folder):
    """A random pipeline of diffusers, saved to `folder`; its tokenizer has CLIP's letters and no merges."""
    torch, diffusers, transformers = (pytest.importorskip(name) for name in ("torch", "diffusers", "transformers"))
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    torch.manual_seed(0)
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(ClipBPE(merges="")._numbers))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder / "tokenizer")
    unet = dict(layers_per_block=1, block_out_channels=(16, 16), norm_num_groups=8)
    plain = dict(down_block_types=("ResnetDownsampleBlock2D",) * 2, up_block_types=("ResnetUpsampleBlock2D",) * 2)
    large = [diffusers.UNet2DModel(sample_size=16, in_channels=6, out_channels=3, add_attention=False, **plain, **unet)
             for _ in range(2)]
    scheduler = diffusers.UnCLIPScheduler
    return torch, diffusers.UnCLIPPipeline(
        prior=diffusers.PriorTransformer(num_attention_heads=4, attention_head_dim=12, num_layers=1, embedding_dim=FEATURES,
                                         num_embeddings=CONTEXT),
        decoder=diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=3, out_channels=6, cross_attention_dim=28, class_embed_type="identity",
            attention_head_dim=8, resnet_time_scale_shift="scale_shift", mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), **unet),
        text_encoder=transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(
            vocab_size=514, hidden_size=FEATURES, intermediate_size=48, projection_dim=FEATURES, num_hidden_layers=2,
            num_attention_heads=3, max_position_embeddings=CONTEXT, bos_token_id=512, eos_token_id=513, pad_token_id=513)),
        tokenizer=tokenizer,
        text_proj=UnCLIPTextProjModel(clip_extra_context_tokens=4, clip_embeddings_dim=FEATURES, time_embed_dim=64,
                                      cross_attention_dim=28),
        super_res_first=large[0], super_res_last=large[1],
        prior_scheduler=scheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=scheduler(variance_type="learned_range", prediction_type="epsilon"),
        super_res_scheduler=scheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
    )


def noted(monkeypatch):
    """Every draw of our samplers, in order: the list that is returned fills while they run."""
    found, source = [], np.random.default_rng(0)

    def per_image(index):
        def noise(key, shape, dtype=np.float32):
            def draw():
                found.append(source.standard_normal(shape).astype(np.float32))
                return found[-1]

            return jax.experimental.io_callback(draw, jax.ShapeDtypeStruct(shape, np.float32), ordered=True)

        return noise

    monkeypatch.setattr(sampling, "per_image", per_image)
    return found


@pytest.mark.slow
def test_a_diffusers_folder_gives_the_same_images(tmp_path, monkeypatch):
    torch, pipe = pipeline(tmp_path / "unclip")
    with torch.no_grad():
        pipe.prior.clip_mean += 0.3 * torch.randn(1, FEATURES)
        pipe.prior.clip_std *= 1.5
    pipe.save_pretrained(tmp_path / "unclip")
    run = str(tmp_path / "run")
    ask("import_weights", run, system="karlo", source=str(tmp_path / "unclip"))

    draws, made, to_pixels = noted(monkeypatch), [], sampling.to_pixels
    monkeypatch.setattr(sampling, "to_pixels", lambda batch, *how: made.append(batch) or to_pixels(batch, *how))
    ask("sample", run, prompt=tuple(PROMPTS), num=1, prior_best=1, prior_steps=str(STEPS["prior"]), steps=str(STEPS["decoder"]),
        out=str(tmp_path / "ours.npz"))
    ours = np.clip(np.concatenate(made) / 2 + 0.5, 0, 1)
    assert len(draws) == sum(STEPS.values()) + len(STEPS)

    ends = np.cumsum([steps + 1 for steps in STEPS.values()])               # a scheduler draws nothing in its last step
    used = iter([draw for i, draw in enumerate(draws) if i + 1 not in ends])

    def theirs(shape, **kwargs):
        draw = next(used)
        return torch.tensor(draw.transpose(0, 3, 1, 2) if draw.ndim == 4 else draw)

    for module in ("pipelines.deprecated.unclip.pipeline_unclip", "schedulers.scheduling_unclip"):
        monkeypatch.setattr(f"diffusers.{module}.randn_tensor", theirs)
    want = pipe(PROMPTS, prior_num_inference_steps=STEPS["prior"], decoder_num_inference_steps=STEPS["decoder"],
                super_res_num_inference_steps=STEPS["upsampler"], prior_guidance_scale=4.0, decoder_guidance_scale=8.0,
                output_type="np").images
    assert next(used, None) is None and want.shape == ours.shape == (2, 16, 16, 3)
    assert want.std() > 0.1
    np.testing.assert_allclose(ours, want, atol=2e-3, rtol=0)


def test_a_folder_without_its_parts_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        ask("import_weights", tmp_path / "run", system="karlo", source=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"holds 0 files prior\*.ckpt: it needs one, or the folders of diffusers"):
        ask("import_weights", tmp_path / "run", system="karlo", source=str(tmp_path))


@pytest.mark.parametrize("change, says", [
    (dict(variance_type="fixed_large"), "variance_type"), (dict(prediction_type="v_prediction"), "prediction_type"),
    (dict(beta_schedule="linear"), "beta_schedule"), (dict(clip_sample="no"), "clip_sample"),
    (dict(clip_sample_range=float("nan")), "not finite"), (dict(num_train_timesteps="many"), "num_train_timesteps"),
    (dict(_class_name="DDIMScheduler"), "UnCLIPScheduler"),
])
def test_a_scheduler_of_another_kind_is_refused(tmp_path, change, says):
    config = {"_class_name": "UnCLIPScheduler", "variance_type": "learned_range", **change}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=says):
        karlo._scheduler(tmp_path)


def test_options_that_no_scheduler_has_are_announced(tmp_path, capsys):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "UnCLIPScheduler", "novel": 1}))
    assert karlo._scheduler(tmp_path)["sample"] == {"clip": 1.0}
    assert "novel" in capsys.readouterr().out


def test_damaged_statistics_are_refused_in_one_line(tmp_path):
    pytest.importorskip("torch")
    for content in (b"", b"no tensors", b"each line\nof this\nis text\n"):
        (tmp_path / "x_stats.th").write_bytes(content)
        with pytest.raises(ConfigError, match=r"x_stats\.th is") as error:
            karlo._pair(tmp_path / "x_stats.th")
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_karlos_own_files_become_a_run(tmp_path):
    torch = pytest.importorskip("torch")
    cases = {name: golden(GOLDENS / f"{name}.json") for name in
             ("unclip/karlo_prior", "unclip/karlo_decoder", "unclip/karlo_sr", "clip/clip_vit")}
    files = ("prior-ckpt-1", "decoder-ckpt-1", "improved-sr-ckpt-1")
    for file, case in zip(files, list(cases.values())[:3], strict=True):
        torch.save({"state_dict": {key: torch.tensor(w) for key, w in case.weights.items()}}, tmp_path / f"{file}.ckpt")
    text = cases["clip/clip_vit"]
    torch.save({key: torch.tensor(w) for key, w in text.weights.items()}, tmp_path / "ViT-L-14.pt")
    mean, std = np.random.default_rng(0).normal(size=(2, 1, FEATURES)).astype(np.float32)
    torch.save((torch.tensor(mean), torch.tensor(std)), tmp_path / "ViT-L-14_stats.th")
    hparams = [case.config["config"]["model"]["hparams"] for case in list(cases.values())[:3]]
    official = dict(zip(("prior", "decoder", "sr"), hparams, strict=True), clip=text.config["kwargs"], size=32)
    (tmp_path / "official.json").write_text(json.dumps(official))
    run = tmp_path / "run"
    ask("import_weights", run, system="karlo", source=str(tmp_path), official=str(tmp_path / "official.json"))

    config, task, params = load(run)
    assert task.shape == (16, 16, 3) and task.variance == "learned_range" and config.sample.guidance == 8
    config, task, _ = load(run / "prior")
    assert task.shape == (FEATURES,) and isinstance(task, DiffusionPrior) and config.sample.clip == 10
    config, task, large = load(run / "upsampler")
    assert task.shape == (32, 32, 3) and task.cond.factor == 2 and set(large["model"]) == {"first", "last"}
    known = first_stage(run)
    np.testing.assert_array_equal(known["mean"], mean[0])
    np.testing.assert_array_equal(known["std"], std[0])
    np.testing.assert_array_equal(params["cond"]["null"], cases["unclip/karlo_decoder"].weights["model.cf_param"].reshape(-1))
