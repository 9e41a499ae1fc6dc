"""Skip-layer guidance as diffusers' StableDiffusion3Pipeline has it: the same latents, by a recipe's text."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.samplers import sample
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import Embedded, Guides, guided
from diffusion_jax.pretrained import systems
from diffusion_jax.runs.folder import Model
from diffusion_jax.train.state import task_of
from pretrained.test_sd3 import pipeline_of_diffusers

STEPS = 10


@pytest.mark.slow
@pytest.mark.parametrize("text", ["layers=1,start=0.01,stop=0.35", "layers=0.2,scale=-1.5,start=0.2,stop=0.6"])
def test_latents_are_those_of_diffusers_pipeline(text, tmp_path):
    torch, parts, pipe = pipeline_of_diffusers()
    for name, part in parts.items():
        part.save_pretrained(tmp_path / "sd3" / name)
    spec, params = systems.load("sd3", tmp_path / "sd3")
    task = task_of(spec)
    recipe = Recipe.of(spec["sample"] | {"steps": STEPS, "guidance": 4.0, "skip": text})
    rng = np.random.default_rng(0)
    noise = np.float32(rng.standard_normal((1, 8, 8, 16)))
    seq, null_seq = np.float32(rng.standard_normal((2, 1, 9, 64)))
    vec, null_vec = np.float32(rng.standard_normal((2, 1, 44)))

    def latents(**options):
        with torch.no_grad():
            return pipe(
                prompt_embeds=torch.tensor(seq), negative_prompt_embeds=torch.tensor(null_seq),
                pooled_prompt_embeds=torch.tensor(vec), negative_pooled_prompt_embeds=torch.tensor(null_vec),
                latents=torch.tensor(noise.transpose(0, 3, 1, 2)), num_inference_steps=STEPS, guidance_scale=4.0, height=16,
                width=16, output_type="latent", **options,
            ).images.numpy().transpose(0, 2, 3, 1)

    fields = dict(part.split("=") for part in text.split(","))
    want = latents(
        skip_guidance_layers=[int(layer) for layer in fields.pop("layers").split(".")],
        **{f"skip_layer_guidance_{name}": float(value) for name, value in fields.items()},
    )
    static, strengths = recipe.split()
    conds = Embedded({}, {"seq": seq, "vec": vec}, {"seq": jnp.asarray(null_seq), "vec": jnp.asarray(null_vec)}, None)

    @jax.jit
    def run(params, strengths, x):
        denoise = guided(Model(params, None, task), static, strengths, conds, jax.random.normal, Guides())
        return sample(denoise, static.make_sampler(task, None), x, static.grid(task.process), conds.cond, jax.random.key(0))

    got = run({name: params[name] for name in ("model", "cond")}, strengths, jnp.asarray(noise))
    plain = np.abs(latents() - want).max()
    off = np.abs(np.asarray(got) - want).max()
    print(text, "off", off, "std", want.std(), "moved by", plain)
    assert off < 2e-3 and plain > 0.05
