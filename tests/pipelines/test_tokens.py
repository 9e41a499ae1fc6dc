"""A transformer over tokens in a pipeline: what it is given, what it refuses, and pictures whole and completed."""
import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.pipelines import dalle, tokens
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.pipeline import Pipeline, pipeline
from diffusion_jax.pipelines.request import Request
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.tasks.dvae import DiscreteVAE
from pipelines.toy_task import data

FIRST = DiscreteVAE(DVAE(codes=8, width=8, mults=(1, 2), depth=1, init_width=4, channels=1), (8, 8, 1))
NET = DALLE(text_codes=14, image_codes=8, text_length=3, grid=4, width=16, depth=2, heads=2, start=0)
RUN = Run("runs/dalle", 0, "params", {"data": data()}, Model({}, {}, Autoregressive(NET, FIRST, drop=0.1)))
THREE, ONE = "a handwritten three", "a handwritten one"
PICTURES = np.stack([np.full((8, 8, 1), level, np.uint8) for level in (50, 200)])


@pytest.fixture
def asked(monkeypatch):
    """What `dalle.generate` is asked for, in place of what it makes; codes of a picture are its level."""
    calls = []
    nothing = np.zeros((6, 8, 8, 1), np.float32)
    monkeypatch.setattr(dalle, "generate", lambda *arguments: calls.append(arguments) or iter([nothing]))
    monkeypatch.setattr(dalle, "upper", lambda model, images: np.round(127.5 * (images[:, 0, :4, 0] + 1)).astype(int))
    return calls


def test_prompts_are_repeated_in_their_order(asked):
    job = Pipeline(RUN, Draw(top_k=3)).start([THREE, ONE], num=3, seed=7, batch=4)
    (model, draw, text, num, seed, batch, codes), = asked
    assert (draw, num, seed, batch, codes) == (Draw(top_k=3), 6, 7, 4, None) and model is RUN.model
    np.testing.assert_array_equal(text, [[1, 2, 6]] * 3 + [[1, 2, 4]] * 3)
    assert job.prompts == (THREE,) * 3 + (ONE,) * 3 and job.labels is None and job.total == 6


def test_without_a_prompt_held_out_captions_are_taken_once_each(asked):
    job = Pipeline(RUN, Draw()).start(num=4)
    assert len(set(job.prompts)) == 4 and asked[0][2].shape == (4, 3)
    np.testing.assert_array_equal(asked[0][2], RUN.tokens(job.prompts))


def test_halves_to_complete_are_taken_in_turn(asked):
    Pipeline(RUN, Draw()).start(Request([THREE, ONE], complete=PICTURES), num=2)
    np.testing.assert_array_equal(asked[0][6], [[50] * 4, [200] * 4] * 2)


@pytest.mark.parametrize(("before", "every", "rows"), [(0, 1, (1, 2, 3, 4)), (0, 3, (1, 4)), (0, 9, (4,)), (2, 1, (1, 2))])
def test_a_row_of_tokens_is_its_pixels_and_what_is_not_drawn_is_grey(before, every, rows):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    looks = list(tokens.row_by_row(RUN, Request(THREE, complete=PICTURES if before else None), images, every))
    assert tuple(drawn for drawn, _ in looks) == rows
    for drawn, look in looks:
        there = [y // 2 < before + drawn for y in range(8)]                # a token is two pixels high
        assert (look[:, there] == images[:, there]).all() and (look[:, np.logical_not(there)] == 128).all()
    np.testing.assert_array_equal(looks[-1][1], images)


@pytest.mark.parametrize(("request_", "says"), [
    (Request(THREE, negative=ONE), "negative .--negative. is for diffusion models"),
    (Request(label=3), "label .--label. is for diffusion models"),
    (Request(THREE, low_res=PICTURES), "low_res .--low_res. is for diffusion models"),
    (Request(THREE, embedding=np.zeros((1, 6))), "embedding .--embedding. is for diffusion models"),
    (Request("a thre"), "unknown word 'thre'"),
    (Request("a a a three"), "tokens"),
    (Request(THREE, complete=np.zeros((1, 4, 4, 1), np.uint8)), r"--complete has pictures of \(4, 4, 1\)"),
], ids=str)
def test_what_it_cannot_read_is_one_line(request_, says):
    with pytest.raises(ConfigError, match=says) as error:
        Pipeline(RUN, Draw())(request_)
    assert "\n" not in str(error.value)


def test_prompts_are_cut_where_one_says_so(asked):
    list(tokens.batches(RUN, Draw(), Request("a a a three", truncate=True), ("a a a three",), 1, 0, 1))
    np.testing.assert_array_equal(asked[0][2], [[1, 1, 1]])


def test_what_changes_nothing_is_refused():
    with pytest.raises(ConfigError, match="truncate .--truncate. cuts prompts: give a prompt"):
        Pipeline(RUN, Draw()).start(Request(truncate=True))
    for k in (RUN.task.model.image_codes, 10**6):
        with pytest.raises(ConfigError, match=f"top_k .--top_k. {k} keeps all of"):
            Pipeline(RUN, Draw(top_k=k)).start(THREE)


def test_it_has_no_steps_and_no_edits():
    pipe = Pipeline(RUN, Draw())
    assert pipe.makes_tokens and pipe.picture_shape == (8, 8, 1)
    for call in (lambda: pipe.edit, lambda: pipe.diffusion):
        with pytest.raises(ConfigError, match="holds a transformer over text and image tokens: this is for diffusion models"):
            call()
    with pytest.raises(ConfigError, match="unknown sampling option 'steps'"):
        pipe.using(steps=3)


def test_a_stream_ends_with_the_pictures_of_a_call(monkeypatch):
    made = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 8, 8, 1)
    monkeypatch.setattr(dalle, "generate", lambda *arguments: iter([made]))
    pipe = Pipeline(RUN, Draw())
    whole = pipe(THREE, num=2).images
    (first, upper), *_, (last, end) = pipe.stream(THREE, num=2, every=1)
    assert (first, last) == (1, 4)
    np.testing.assert_array_equal(end, whole)
    np.testing.assert_array_equal(upper[:, :2], whole[:, :2])
    assert (upper[:, 2:] == tokens.GREY).all()
    with pytest.raises(ConfigError, match="every is 1"):
        pipe.stream(THREE, every=0)



@pytest.mark.parametrize("name", ["upsamplers", "classifier", "weak", "prior"])
def test_helpers_of_diffusion_models_are_refused(name):
    helper = ["runs/y"] if name == "upsamplers" else "runs/y"
    with pytest.raises(ConfigError, match=f"{name.removesuffix('s')} .* is for diffusion models: runs/dalle holds a transformer"):
        pipeline(RUN, **{name: helper})


def test_without_a_first_stage_there_are_no_pictures():
    with pytest.raises(ConfigError, match="images are made by a first stage: this folder has none"):
        Pipeline(RUN._replace(model=RUN.model.replace(first=None)), Draw())(THREE)


@pytest.mark.slow
def test_pictures_whole_and_completed():
    batch = {"image": np.zeros((1, 8, 8, 1), np.float32), "tokens": np.zeros((1, 3), np.int32)}
    task = RUN.task
    model = Model(jax.jit(task.init)(jax.random.key(0), batch), jax.jit(FIRST.init)(jax.random.key(0), batch), task)
    pipe = Pipeline(RUN._replace(model=model), Draw(top_p=0.9))
    made = pipe([THREE, ONE], num=2, seed=3)
    assert made.images.shape == (4, 8, 8, 1) and made.prompts == (THREE, THREE, ONE, ONE)
    np.testing.assert_array_equal(pipe(THREE, num=2, seed=3).images, made.images[:2])
    done = pipe(Request(THREE, complete=made.images[:1]), num=2, seed=4).images
    again = pipe(Request(THREE, complete=made.images[:1]), num=2, seed=9).images
    assert np.abs(done[:, :3].astype(int) - again[:, :3]).max() <= 6              # the decoder sees a little of the lower half
    assert np.abs(done[:, 5:].astype(int) - again[:, 5:]).max() > 6
