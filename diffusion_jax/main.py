"""The command line: `python -m diffusion_jax.main --config configs/digits.py --workdir runs/digits --mode train`."""
from __future__ import annotations

import importlib
import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from diffusion_jax.build import ConfigError

MODES = ("train", "sample", "evaluate", "reference", "sweep", "posthoc_ema", "import_weights", "edit", "encode", "likelihood",
         "plan")

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A page of configs/; train needs it, the others read the checkpoint's. --config.<key>=<value> changes it.",
    lock_config=False, accept_new_attributes=True)     # pages leave out what is optional; modes/config.py refuses unknown keys
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: checkpoints, metrics, samples, report.", required=True)
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of the cluster first. Where JAX cannot find them (it does on TPU pods and in "
    "Slurm), set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment.")
COMPILED = flags.DEFINE_string(
    "compiled", None, "Folder in which compiled programs are kept, so that a second start compiles nothing; '' for none. By "
    "default '.compiled' beside the workdir.")

OPTIONS = [
    flags.DEFINE_string("profile_steps", None, "Steps of training to trace for TensorBoard: '10:15'."),
    flags.DEFINE_integer("num", None, "Images to make.", lower_bound=1),
    flags.DEFINE_integer("label", None, "Class to sample; without it the classes in turn.", lower_bound=0),
    flags.DEFINE_string("sampler", None, "ddim, ancestral, plms, heun, edm, dpmpp_2m ...; options follow: 'ddim,eta=0.5'."),
    flags.DEFINE_string("steps", None, "Steps, or a respacing ('ddim50', '10,15,20', 'fast27') with --times respace."),
    flags.DEFINE_string("times", None, "uniform, trailing, leading, linspace, karras, log_snr, respace."),
    flags.DEFINE_float("guidance", None, "Classifier-free guidance scale; 1 is none."),
    flags.DEFINE_string("schedule", None, "Of the scale: constant, dynamic_cfg, 'power_cosine,power=4'."),
    flags.DEFINE_float("phi", None, "Rescaled phi of guidance."),
    flags.DEFINE_string("interval", None, "Noise levels to guide in: 'low,high' in sigma / alpha."),
    flags.DEFINE_integer("channels", None, "Guide only the first so many channels."),
    flags.DEFINE_string("cads", None, "CADS options: 's=0.1,tau1=0.6,tau2=0.9,psi=1'."),
    flags.DEFINE_float("clip", None, "Clip x0 to [-clip, clip]; 0 is not."),
    flags.DEFINE_float("threshold", None, "Quantile of dynamic thresholding; 0 is none."),
    flags.DEFINE_string("classifier", None, "Folder of a noisy classifier that guides towards the label, or of a CLIP."),
    flags.DEFINE_string("weak", None, "Folder of a weaker model to guide away from (autoguidance), in place of no condition."),
    flags.DEFINE_integer("weak_step", None, "Its checkpoint; the newest by default."),
    flags.DEFINE_float("classifier_scale", None, "Scale of its gradient, 1 by default."),
    flags.DEFINE_multi_string("upsampler", None, "Folder of a model that makes the images larger; may be given again."),
    flags.DEFINE_string("low_res", None, "Images for an upsampler: x.npz, an image or a folder."),
    flags.DEFINE_float("augment", None, "Noise level, 0 ... 1, that an upsampler's images are augmented with."),
    flags.DEFINE_string("metric", None, "What evaluate measures: pixels, features, bpd (bits/dim), accuracy (of a classifier), "
                        "retrieval, zero_shot or tsne (of a CLIP), clip (of what reads text)."),
    flags.DEFINE_string("features", None, "In whose features to measure: a classifier's folder, inception=FILE, dinov2=FILE."),
    flags.DEFINE_string("resize", None, "Inception's input: tensorflow (ADM, torch-fidelity), pytorch_fid, clean_fid."),
    flags.DEFINE_string("images", None, "Images to measure in place of samples: a folder or an .npz."),
    flags.DEFINE_string("reference", None, "What to measure against: a folder, an .npz of images, or statistics (.npz, .pkl)."),
    flags.DEFINE_float("blur", None, "Deviation in pixels of a Gaussian filter over both before they are measured."),
    flags.DEFINE_string("rerank", None, "Folder of a classifier, or of a CLIP, that chooses among --candidates."),
    flags.DEFINE_integer("candidates", None, "Images to make for each that is kept.", lower_bound=1),
    flags.DEFINE_multi_string("prompt", None, "Text to make an image of; may be given again."),
    flags.DEFINE_string("negative", None, "Text of what is not wanted, in place of the empty text of guidance."),
    flags.DEFINE_bool("truncate", None, "Cut prompts that have more tokens than the model reads, which is refused without it."),
    flags.DEFINE_float("temperature", None, "Of the choice of tokens, or of the noise that sampling starts from; 1 by default."),
    flags.DEFINE_integer("top_k", None, "Choose among the k most likely tokens; 0 is all.", lower_bound=0),
    flags.DEFINE_float("top_p", None, "Choose among the most likely tokens that together have this probability; 0 is all."),
    flags.DEFINE_string("prior", None, "Where unCLIP's decoder has its embeddings from: a prior's folder, or text, or caption."),
    flags.DEFINE_float("prior_guidance", None, "Guidance of the prior."),
    flags.DEFINE_string("prior_steps", None, "Steps of a diffusion prior."),
    flags.DEFINE_integer("prior_best", None, "Embeddings that it makes for each that is kept, 2 by default.", lower_bound=1),
    flags.DEFINE_string("complete", None, "Images whose upper halves are given to a token model: x.npz, an image or a folder."),
    flags.DEFINE_string("template", None, "Text of a class for zero_shot: 'a photo of a {}'."),
    flags.DEFINE_string("op", None, "Of mode edit: invert, strength, switch, mix, guidance, phi, inpaint or replay; of unCLIP's "
                        "decoder also variations, interpolate, text_diff or components."),
    flags.DEFINE_integer("to_label", None, "The other class of edits.", lower_bound=0),
    flags.DEFINE_multi_string("to_prompt", None, "The other text of edits; may be given again."),
    flags.DEFINE_multi_string("rect", None, "What to make anew: top,left,bottom,right in pixels; may be given again."),
    flags.DEFINE_string("session", None, "JSON file of an editing session."),
    flags.DEFINE_float("strength", None, "Of an edit, 0 ... 1: how much noise a picture is given first."),
    flags.DEFINE_string("over", None, "What sweep changes: an option of sampling, 'cads.s' for example, or which, step, run."),
    flags.DEFINE_list("values", None, "Its values: 1,2,4."),
    flags.DEFINE_list("std", None, "Lengths of averages for posthoc_ema, relative to the run's: 0.05,0.10."),
    flags.DEFINE_string("system", None, "Whose weights to import: adm, clip, dalle, diffit, dit, dvae, edm2, glide, sd, vae ..."),
    flags.DEFINE_string("source", None, "The file with the weights: .safetensors, .npz, .pt, .pth, .ckpt, or EDM2's .pkl; of sd "
                        "and vae also a folder of diffusers, of karlo a folder."),
    flags.DEFINE_string("first_stage", None, "Folder of an imported autoencoder for the latents of dit, diffit and edm2."),
    flags.DEFINE_string("official", None, "JSON file with the official constructor's options, for unpublished networks."),
    flags.DEFINE_multi_string("topology", None, "Of mode plan: v5e:16x16, v5p-128, h100:64 ...; may be given again."),
    flags.DEFINE_integer("per_chip", None, "To plan: examples on each chip, in place of the config's batch.", lower_bound=1),
    flags.DEFINE_multi_string("layout", None, "To plan: data,fsdp,tensor and 'use' to gather by layers; may be given again."),
    flags.DEFINE_string("program", None, "To plan: train, sample, or estimate to compile nothing."),
    flags.DEFINE_bool("machine_code", None, "To plan: compile to the end, for XLA's own estimate of the time; for UNets that "
                      "takes half an hour and more."),
    flags.DEFINE_integer("seed", None, "Of sampling."),
    flags.DEFINE_integer("batch", None, "Images at a time.", lower_bound=1),
    flags.DEFINE_string("out", None, "grid.png, x.npz or folder/."),
    flags.DEFINE_string("which", None, "Weights to use: an EMA's name, or params."),
    flags.DEFINE_integer("step", None, "Checkpoint to use; the newest by default."),
]


def main(argv: list[str]) -> None:
    """Runs one mode; what the user can mend becomes one line on stderr and exit code 2."""
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}: flags begin with --")
    if MODE.value in ("train", "plan") and CONFIG.value is None:
        raise ConfigError(f"mode {MODE.value} needs --config configs/<page>.py")
    if "://" in WORKDIR.value:
        raise ConfigError(f"--workdir {WORKDIR.value} is no folder: mount it with gcsfuse or Filestore and give the mount point")
    if DISTRIBUTED.value:
        join()
    beside = os.path.join(os.path.dirname(os.path.abspath(WORKDIR.value)), ".compiled")
    keep_compiled(beside if COMPILED.value is None else COMPILED.value)
    options = {flag.name: flag.value for flag in OPTIONS if flag.value is not None}
    importlib.import_module(f"diffusion_jax.modes.{MODE.value}").run(CONFIG.value, WORKDIR.value, options)


def keep_compiled(folder: str) -> None:
    """Keeps what XLA compiles for the next start, found again by the program's text, its options and the compiler's version."""
    import jax

    if folder and not jax.config.jax_compilation_cache_dir:            # nor where JAX_COMPILATION_CACHE_DIR says another
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def join() -> None:
    """Joins the other processes, see --distributed; `ConfigError` where nothing, or nothing sensible, says how."""
    import jax

    said = {name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")}
    try:
        jax.distributed.initialize(**{name: int(value) for name, value in said.items() if value})    # finds the address itself
    except ValueError as error:
        raise ConfigError(f"--distributed: {error} Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID") from None


def parse(argv: list[str]) -> list[str]:
    """Flags, with the errors of a config file or of an override as one line."""
    try:
        return flags.FLAGS(argv)
    except SystemExit:                                   # --help and its like, which absl ends with code 1
        sys.exit(0)
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
        refuse(error)


def refuse(error: Exception) -> None:
    """Says in one line what is wrong, and ends the program."""
    while error.args and isinstance(error.args[0], Exception):                   # ml_collections wraps what it catches,
        error = error.args[0]
    said = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    said = said.strip().splitlines()[-1] if "Traceback" in said else said        # or quotes all of it
    said = said.removeprefix(f"{ConfigError.__module__}.{ConfigError.__name__}: ")
    where = "the config has no key " if isinstance(error, KeyError) else ""
    print(f"error: {where}{' '.join(said.split())}", file=sys.stderr)
    sys.exit(2)


def guarded(argv: list[str]) -> None:
    """`main`, with the errors that the user can mend as one line: no such file, no room on the disk, a wrong option."""
    try:
        main(argv)
    except (ConfigError, OSError) as error:
        refuse(error)


def run() -> None:
    """The program."""
    logging.set_verbosity(logging.WARNING)               # orbax narrates every save at INFO
    app.run(guarded, flags_parser=parse)


if __name__ == "__main__":
    run()
