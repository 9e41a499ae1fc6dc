"""A run's folder: what is read from it, from wherever in it one points, and what is refused."""
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import files
from pipelines.toy_task import LABEL, TEXT, Brightness, classifier_page, make, model_of, page, write
from pipelines.unclip_task import AR, DECODER, EMBEDDER, PRIOR

from diffusion_jax.build import ConfigError
from diffusion_jax.data.clip_bpe import ClipBPE
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.glide_bpe import GlideBPE
from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.vae import KL
from diffusion_jax.pipelines.unclip import own_upsampler
from diffusion_jax.runs.folder import FIRST, Run, check_kind, holds_run, open_run, save_start
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.dvae import DiscreteVAE
from diffusion_jax.train import checkpoint
from diffusion_jax.train.checkpoint import Checkpoints, weights
from diffusion_jax.types import TrainState

DVAE_TASK = DiscreteVAE(DVAE(codes=8, width=8, mults=(1, 2), depth=1, init_width=4, channels=1), (8, 8, 1))
NET = DALLE(text_codes=10, image_codes=8, text_length=3, grid=4, width=16, depth=2, heads=2, kernel=3, start=0)
TASKS = {
    "pixels": (make(), "a diffusion model", {"Pictures", "Denoising"}),
    "decoder": (DECODER, "a diffusion model", {"Pictures", "Denoising"}),
    "prior": (PRIOR, "a prior of unCLIP", {"Prior", "Denoising"}),
    "ar": (AR, "a prior of unCLIP", {"Prior"}),
    "classifier": (NoisyClassifier(Brightness(), DDPM(), (8, 8, 1)), "a noisy classifier", {"Guide", "Classifier"}),
    "clip": (EMBEDDER.clip, "a CLIP", {"Guide", "TwoTowers"}),
    "vae": (Autoencoder(KL(mults=(1, 2)), (8, 8, 3)), "an autoencoder", {"Encoding"}),
    "dvae": (DVAE_TASK, "a discrete VAE", {"Discrete"}),
    "tokens": (Autoregressive(NET, DVAE_TASK), "a transformer over text and image tokens", {"Tokens"}),
}
NOUNS = {
    "Pictures": "a diffusion model",
    "Denoising": "a diffusion model or a diffusion prior",
    "Prior": "a prior of unCLIP",
    "Guide": "a noisy classifier or a CLIP",
    "Classifier": "a noisy classifier",
    "TwoTowers": "a CLIP",
    "Encoding": "an autoencoder",
    "Discrete": "a discrete VAE",
    "Tokens": "a transformer over text and image tokens",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run of labels with two steps of weights and two averages, one of texts, a classifier."""
    root = tmp_path_factory.mktemp("runs")
    config, model = page(LABEL), model_of(page(LABEL))
    with Checkpoints(root / "label", config, every=1, keep=5) as checkpoints:
        for step in (3, 7):
            params, fast, slow = (times(by * step, model.params) for by in (1, 10, 100))
            checkpoints.save(TrainState(jnp.int32(step), params, (), {"fast": fast, "slow": slow}))
    return SimpleNamespace(
        root=root, label=root / "label", params=model.params, text=write(root / "text", page(TEXT)),
        classifier=write(root / "classifier", classifier_page()))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def times(by, params):
    return jax.tree.map(lambda leaf: by * leaf, params)


# Kinds ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NOUNS)
@pytest.mark.parametrize("name", TASKS)
def test_a_folder_of_another_kind_is_refused_in_one_sentence(name, kind):
    task, noun, own = TASKS[name]
    if kind in own:
        return check_kind(task, getattr(kinds, kind), "runs/x")
    with pytest.raises(ConfigError) as error:
        check_kind(task, getattr(kinds, kind), "--prior runs/x")
    assert str(error.value) == f"--prior runs/x holds {noun}: give the folder of {NOUNS[kind]}"


def test_several_kinds_are_named_together():
    check_kind(TASKS["tokens"][0], (kinds.Pictures, kinds.Tokens), "runs/x")
    check_kind(TASKS["clip"][0], None, "runs/x")
    with pytest.raises(ConfigError) as error:
        check_kind(TASKS["clip"][0], (kinds.Pictures, kinds.Tokens), "runs/x")
    assert str(error.value) == ("runs/x holds a CLIP: give the folder of a diffusion model or of a transformer over text and "
                                "image tokens")


def test_opening_refuses_it_before_weights_are_read(folders, monkeypatch):
    monkeypatch.setattr("diffusion_jax.runs.folder.weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match="--classifier .*text holds a diffusion model: give the folder of a noisy classifier"):
        open_run(folders.text, kinds.Guide, flag="--classifier ")


# What is read ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "step", "want"), [
    ("", None, 7), ("", 3, 3), ("checkpoints", None, 7), ("checkpoints", 3, 3), ("checkpoints/3", None, 3),
    ("checkpoints/7", None, 7)])
def test_a_run_is_opened_from_wherever_in_it_one_points(folders, inside, step, want):
    run = open_run(folders.label / inside, kinds.Pictures, "params", step)
    assert (run.step, run.which, run.folder) == (want, "params", str(folders.label))
    assert same(run.model.params, times(want, folders.params))
    assert run.model.task == model_of(page(LABEL)).task and run.model.first is None


def test_a_bare_folder_of_one_step_is_enough(folders, tmp_path):
    bare = shutil.copytree(folders.label / "checkpoints" / "3", tmp_path / "3")
    assert same(open_run(bare, which="slow").model.params, times(300, folders.params))


@pytest.mark.parametrize(("which", "by"), [("params", 7), ("fast", 70), ("slow", 700)])
def test_one_set_of_weights_is_read(folders, which, by):
    run = open_run(folders.label, which=which)
    assert run.which == which and same(run.model.params, times(by, folders.params))
    assert run.digest == weights(folders.label, which).digest


@pytest.mark.parametrize(("options", "says"), [
    (dict(which="slwo"), "did you mean 'slow'"),
    (dict(which="ema"), "names the only average, but .* has: params, fast, slow"),
    (dict(step=5), "has no checkpoint of step 5; it has: 3, 7"),
], ids=str)
def test_weights_that_are_not_there(folders, options, says):
    with pytest.raises(ConfigError, match=says):
        open_run(folders.label, **options)


def test_without_averages_ema_means_the_parameters(folders):
    run = open_run(folders.text)
    assert run.which == "params" and same(run.model.params, model_of(page(TEXT)).params)


def test_home_is_expanded(folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders.root))
    assert open_run("~/text").step == 0


def test_folders_that_hold_nothing(folders, tmp_path):
    with pytest.raises(ConfigError, match="there is no folder .*nowhere: give the workdir of a run"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no checkpoint; it has: nothing"):
        open_run(tmp_path)
    assert not holds_run(tmp_path) and not holds_run(tmp_path / "nowhere") and holds_run(folders.text)


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/0"])
def test_the_first_stage_comes_along(folders, tmp_path, inside):
    run = shutil.copytree(folders.text, tmp_path / "run")
    first = {"scale": jnp.arange(3.0)}
    save_start(run / FIRST, page(LABEL), first)
    model = open_run(run / inside).model
    assert same(model.first, first) and model.frozen[FIRST] is model.first


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/0"])
def test_what_came_with_a_run_is_found_from_wherever_in_it_one_points(folders, tmp_path, inside):
    run = shutil.copytree(folders.text, tmp_path / "run")
    save_start(run / "upsampler", page(LABEL), folders.params)
    assert own_upsampler(open_run(run / inside)) == [str(run / "upsampler")]


def test_a_folder_is_spelt_as_the_user_does_where_it_is_the_run_s_own(folders, monkeypatch):
    monkeypatch.chdir(folders.root)
    assert open_run("text").folder == "text"
    monkeypatch.chdir(folders.text / "checkpoints")
    assert open_run("0").folder == open_run(".").folder == str(folders.text)


# Beside a run that trains --------------------------------------------------------------------------------------------------


def removed(run, step):
    shutil.rmtree(run / "checkpoints" / str(step))


def half_removed(run, step):
    """Files go before folders do: what is left looks like a checkpoint."""
    for path in sorted((run / "checkpoints" / str(step)).rglob("*"), reverse=True):
        if path.is_file():
            path.unlink()


@pytest.fixture
def training(folders, tmp_path, monkeypatch):
    """A run that ends its step 7 and removes it just when somebody begins to read it: (folder, what does it, what happened)."""
    run = shutil.copytree(folders.label, tmp_path / "run")
    happened = []

    def during(read, remove):
        def reading(root, step, *rest, **options):
            if step == 7 and not happened:
                shutil.copytree(run / "checkpoints" / "7", run / "checkpoints" / "9")
                remove(run, 7)
                happened.append(step)
            return read(root, step, *rest, **options)
        return reading

    return run, during, happened


@pytest.mark.parametrize("remove", [removed, half_removed])
@pytest.mark.parametrize("read", ["open_run", "weights", "load", "config_of"])
def test_a_checkpoint_that_goes_while_it_is_read_is_replaced_by_the_newest(training, folders, monkeypatch, read, remove):
    run, during, happened = training
    monkeypatch.setattr(checkpoint, "_json", during(checkpoint._json, remove))
    got = {"open_run": lambda: open_run(run, which="params").step, "weights": lambda: weights(run, "params").step,
           "load": lambda: same(checkpoint.load(run, "params")[2], times(7, folders.params)) and 9,
           "config_of": lambda: checkpoint.config_of(run) == page(LABEL) and 9}[read]()
    assert got == 9 and happened == [7]


@pytest.mark.parametrize("where", ["step", "folder"])
def test_one_that_was_named_is_not(training, monkeypatch, where):
    run, during, _ = training
    monkeypatch.setattr(checkpoint, "_json", during(checkpoint._json, half_removed))
    with pytest.raises(ConfigError, match="checkpoint of step 7 .* does not read .*other steps: 3, 9"):
        weights(run, "params", 7) if where == "step" else weights(run / "checkpoints" / "7", "params")


# Weights --------------------------------------------------------------------------------------------------------------------


def test_a_digest_differs_where_the_weights_do(folders):
    digests = [weights(folders.label, which, step).digest for which in ("params", "fast", "slow") for step in (3, 7)]
    assert len(set(digests)) == 6
    read = weights(folders.label, "fast", 3)
    assert (read.name, read.step) == ("fast", 3) and same(read.params, times(30, folders.params))


def test_a_flipped_bit_is_noticed(folders, tmp_path):
    run = shutil.copytree(folders.text, tmp_path / "run")
    arrays = [path for path in (run / "checkpoints" / "0" / "state").rglob("*") if path.is_file()]
    largest = max(arrays, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    with pytest.raises(ConfigError, match="checkpoint of step 0 in .* does not read"):
        open_run(run)


# What a run says ------------------------------------------------------------------------------------------------------------


def test_what_tells_weights_apart(folders):
    fast, slow = (open_run(folders.label, which=which) for which in ("fast", "slow"))
    assert fast.identity == {"run": str(folders.label.resolve()), "which": "fast", "step": 7, "digest": fast.digest}
    assert fast.identity != slow.identity


def test_texts_and_classes_are_those_of_the_page(folders):
    run = open_run(folders.text)
    np.testing.assert_array_equal(run.tokens(["a three", "NINE"]), [[1, 6, 0], [12, 0, 0]])
    assert run.tokens(["a three"]).dtype == np.int32
    with pytest.raises(ConfigError, match="tokens"):
        run.tokens(["a a a three"])
    np.testing.assert_array_equal(run.tokens(["a a a three"], truncate=True), [[1, 1, 1]])
    assert run.class_names == tuple("0123456789") and run.tokenizer is run.tokenizer
    assert run.recipe() == {"steps": 4} and run.captions(2) == [Digits("test")[i]["caption"] for i in (0, 148)]
    batch = run.held_out(4)
    assert batch["image"].shape == (4, 8, 8, 1) and batch["tokens"].shape == (4, 3) and batch["image"].min() >= -1


def test_a_text_alone_is_one_and_no_letters(folders):
    run = open_run(folders.text)
    np.testing.assert_array_equal(run.tokens("a three"), run.tokens(["a three"]))


@pytest.mark.parametrize("prompts", [[], (), [3], 3, None, b"a", {"a"}, [["a"]]])
def test_what_is_no_text_has_no_tokens(folders, prompts):
    with pytest.raises(ConfigError, match="prompts are a text, or a list of several: got"):
        open_run(folders.text).tokens(prompts)


@pytest.mark.parametrize("tokenizer", [GlideBPE(merges="", context=32), ClipBPE(merges="")], ids=["glide", "clip"])
@pytest.mark.parametrize("prompt", ["caf\udce9", "\ud800", ["a three", "a \udfff"]])
def test_half_a_letter_is_refused_whatever_the_tokenizer(folders, monkeypatch, tokenizer, prompt):
    """Some tokenizers put another sign in its place, others fail."""
    monkeypatch.setattr(Run, "tokenizer", tokenizer)
    run = open_run(folders.text)
    with pytest.raises(ConfigError, match="holds half a letter .a lone surrogate.: write it in UTF-8") as error:
        run.tokens(prompt)
    str(error.value).encode()
    assert run.tokens("caf\u00e9").shape[0] == 1


@pytest.mark.parametrize(("options", "says"), [
    (dict(kind="text"), "kind is a class of diffusion_jax.tasks.kinds, .* got 'text'"),
    (dict(kind=int), "kind is a class"), (dict(kind=()), "kind is a class"), (dict(kind=[kinds.Pictures]), "kind is a class"),
    (dict(kind=(kinds.Pictures, "text")), "kind is a class"),
    (dict(which=3), "which .--which. is the name of weights: got 3"),
    (dict(folder=3), "a run is a folder, or a run that is open: got 3"), (dict(folder=None), "got None"),
    (dict(folder=3, flag="--prior "), "^prior .--prior. is a folder, or a run that is open: got 3"),
])
def test_arguments_of_another_type_are_one_line(folders, options, says):
    with pytest.raises(ConfigError, match=says) as error:
        open_run(**{"folder": folders.label, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num", [0, -1, 2.5, float("nan"), "a", None, True])
def test_held_out_pictures_and_captions_are_counted(folders, num):
    run = open_run(folders.text)
    for call in (run.held_out, run.captions):
        with pytest.raises(ConfigError, match="num is "):
            call(num)


def test_class_names_are_those_of_the_checkpoint_where_it_has_any(folders, tmp_path):
    """A run may be opened where its data are not."""
    gone = page(LABEL) | {"data": page(LABEL)["data"] | {"train": {"name": "diffusion_jax.data.folder:Folder", "path": "gone"}}}
    marks = ({"classes": ["cat", "dog"]}, ("cat", "dog")), ({"classes": None}, None), ({"classes": ["cat", 3]}, None), ({}, None)
    for i, (data, want) in enumerate((*marks, (None, None))):
        save_start(tmp_path / str(i), gone, folders.params, data=data)
        assert open_run(tmp_path / str(i)).class_names == want
        assert checkpoint.data_of(tmp_path / str(i)) == data


def test_a_run_without_data_says_so(folders):
    run = open_run(folders.text)._replace(config={})
    assert run.tokenizer is None and run.class_names is None and run.recipe() == {}
    for call, says in ((lambda: run.tokens(["a"]), "came without a tokenizer, so it reads no prompts"),
                       (lambda: run.captions(2), "came without data, so it has no captions of its own: give a prompt"),
                       (lambda: run.held_out(2), "came without data: it has no held-out images"),
                       (lambda: run.data("do this"), "this model came without data: do this")):
        with pytest.raises(ConfigError, match=says):
            call()


# The start of a run ---------------------------------------------------------------------------------------------------------


def test_a_start_never_takes_the_place_of_a_run(folders, tmp_path):
    before = files(folders.text)
    with pytest.raises(ConfigError, match="text holds a run: choose another folder"):
        save_start(folders.text, page(LABEL), folders.params)
    assert files(folders.text) == before
    save_start(tmp_path / "new", page(LABEL), folders.params, 12)
    run = open_run(tmp_path / "new")
    assert run.step == 12 and same(run.model.params, folders.params)


def test_a_start_expands_home(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_start("~/new", page(LABEL), folders.params)
    assert holds_run(tmp_path / "new")
    with pytest.raises(ConfigError, match="holds a run: choose another folder"):
        save_start("~/new", page(LABEL), folders.params)
