"""The loss on held-out pictures: its closed form, its draws, and that a run which was interrupted has the same curve."""
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import ask
from pages import page as tiny_page
from pipelines.toy_task import LABEL, Affine, Brightness, TokenMean, make
from pipelines.toy_task import page as toy_page
from scipy import stats

from diffusion_jax.build import ConfigError, build
from diffusion_jax.diffusion import process, times
from diffusion_jax.evaluation import report, validation
from diffusion_jax.evaluation.report import Measured
from diffusion_jax.evaluation.validation import Validation, by_level, of_page, permutation, summary, times_of
from diffusion_jax.models.cond import Nothing
from diffusion_jax.modes import train
from diffusion_jax.runs import page, pages
from diffusion_jax.runs.folder import Model, open_run
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.train import shard
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import WholeBatch

NUM = 40
BARE = dict(cond=Nothing(), shape=(2, 2, 1))


def layout(devices=1, **axes):
    return shard.make_mesh(devices=jax.devices()[:devices], **axes)


def pictures(count=8, shape=(2, 2, 1), seed=0):
    image = np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)
    return {"image": image, "label": np.arange(count, dtype=np.int32) % 3}


def held_out(rows=None, num=NUM, batch=16, mesh=None, **config):
    return Validation(2, 7, num, batch, dict(accumulate=1) | config, mesh or layout(), rows or pictures())


def model(task, mesh=None, rules=shard.REPLICATE, **params):
    made = {"model": {"gain": np.float32(0.0)}, "cond": {}} | params
    return Model(jax.device_put(made, shard.shardings(mesh or layout(), made, rules)), None, task)


# Draws ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "drawn", "quantile"), [
    (process.Cosine(), times.Uniform(), lambda u: u),
    (process.Cosine(), times.Stratified(), lambda u: u),
    (process.EDM(), times.LogNormal(-1.2, 1.2), lambda u: np.exp(stats.norm.ppf(u, -1.2, 1.2))),
    (process.Flow(), times.LogitNormal(0.5, 1.0), lambda u: 1 / (1 + np.exp(-stats.norm.ppf(u, 0.5, 1.0)))),
    (process.DDPM(), times.SecondMoment(), lambda u: np.floor(1000 * u)),
], ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else "")
def test_times_are_the_quantiles_of_those_of_training(process, drawn, quantile):
    """Of a memory's times the weighted losses are those of uniform times, whatever it remembers."""
    task = dataclasses.replace(make("cosine", **BARE), process=process, times=drawn)
    t = times_of(task, NUM)
    u = (np.arange(NUM) + 0.5) / NUM
    slack = 0.006                                                          # Q is of 2^18 draws
    assert len(t) == NUM and (np.diff(t) > 0).all() and t.dtype in (np.float32, np.int32)
    low, high = quantile(np.maximum(u - slack, 1e-6)), quantile(np.minimum(u + slack, 1 - 1e-6))
    assert (low <= t).all() and (t <= high).all()
    np.testing.assert_array_equal(times_of(task, NUM), t)


def test_every_time_is_drawn_once_and_no_picture_has_its_neighbours():
    levels = permutation(NUM)
    assert sorted(levels) == list(range(NUM)) and abs(np.corrcoef(levels, np.arange(NUM))[0, 1]) < 0.4
    np.testing.assert_array_equal(permutation(NUM), levels)


def test_levels_are_fifths_of_the_draws_in_the_order_of_their_times():
    losses = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    levels = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert by_level(losses, levels) == {
        "val_loss": 4.5, "val_loss[0.0-0.2]": 8.5, "val_loss[0.2-0.4]": 6.5, "val_loss[0.4-0.6]": 4.5,
        "val_loss[0.6-0.8]": 2.5, "val_loss[0.8-1.0]": 0.5}
    assert list(by_level(np.array([1.0, 2.0]), np.array([0, 1]))) == ["val_loss", "val_loss[0.0-0.2]", "val_loss[0.4-0.6]"]


# Losses ---------------------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_network_that_says_zero_is_what_it_leaves_out():
    """x0 = 0: the loss of (2) in x0 is the mean square of the picture, of each draw its own."""
    rows = pictures(5)
    got = held_out(rows).figures(model(make("cosine", **BARE)), {})
    square = np.mean(rows["image"].astype(np.float64) ** 2, axis=(1, 2, 3))[np.arange(NUM) % 5]
    bins = permutation(NUM) // 8
    assert got["val_loss"] == pytest.approx(square.mean(), rel=1e-6)
    for number, name in enumerate([name for name in got if "[" in name]):
        assert got[name] == pytest.approx(square[bins == number].mean(), rel=1e-6)


def test_the_loss_of_a_network_that_says_x_is_that_of_the_noise():
    """x0 = x / 4 for small x: (x / 4 - x0)^2 has a known mean over eps at each time, E = (a / 4 - 1)^2 x0^2 + s^2 / 16."""
    tiny, num = 0.01, 400
    rows = {"image": np.full((1, 2, 2, 1), tiny, np.float32)}
    task = dataclasses.replace(make("cosine", **BARE), model=Affine())
    got = held_out(rows, num).figures(model(task, model={"gain": np.float32(1)}), {})
    t = (np.arange(num) + 0.5) / num * task.process._theta
    noise = np.random.default_rng(0).normal(size=10**5)
    want = [np.mean((np.tanh(np.cos(at) * tiny + np.sin(at) * noise) - tiny) ** 2) for at in t[::8]]
    assert got["val_loss"] == pytest.approx(np.mean(want), rel=0.1)
    parts = [got[name] for name in got if "[" in name]
    assert parts == sorted(parts) and parts[0] < 0.05 < parts[-1]


@pytest.mark.parametrize(("changes", "devices", "axes"), [
    (dict(batch=7), 1, {}), (dict(batch=16), 8, dict(fsdp=2)),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        (dict(batch=64), 1, {}), (dict(batch=16, accumulate=2, gather="use"), 4, dict(fsdp=4)), (dict(batch=800), 8, {})))])
def test_neither_batch_nor_devices_change_a_draw(changes, devices, axes):
    task = make("cosine", **BARE)
    want = held_out(pictures(9)).figures(model(task, model={"gain": np.float32(0.7)}), {})
    mesh = layout(devices, **axes)
    got = held_out(pictures(9), mesh=mesh, **changes).figures(model(task, mesh, model={"gain": np.float32(0.7)}), {})
    assert got == pytest.approx(want, rel=1e-5)


def test_conditions_are_not_dropped_and_no_seed_changes_anything():
    table = jnp.array([[5.0], [5.0], [5.0], [-50.0]])
    task = make("cosine", shape=(2, 2, 1), drop={"label": 1.0})
    params = dict(model={"gain": np.float32(0)}, cond={"table": jnp.broadcast_to(table, (4, 4))})
    rows = {"image": np.full((3, 2, 2, 1), 5, np.float32), "label": np.arange(3, dtype=np.int32)}
    ramp = np.array([0.5, 1.5])                                            # m = 5: the two rows are 2.5 and 7.5
    got = held_out(rows).figures(model(task, **params), {})
    assert got["val_loss"] == pytest.approx(np.mean((5 * ramp - 5) ** 2), rel=1e-5)


def test_a_memory_of_times_changes_nothing():
    task = dataclasses.replace(make("ddpm", **BARE), times=times.SecondMoment(history=2))
    made = held_out(pictures(6))
    losses = {"losses": np.full((1000, 2), 3.0, np.float32), "counts": np.full(1000, 5, np.int32)}
    losses["losses"][:10] = 1e4
    assert made.figures(model(task), losses) == made.figures(model(task), task.memory())


def test_one_program_serves_all_batches_and_weights():
    task, made = make("cosine", **BARE), held_out(pictures(3), num=37, batch=16)
    made.figures(model(task), {})
    before = validation._losses._cache_size()
    for gain in (0.5, 0.9):
        made.figures(model(task, model={"gain": np.float32(gain)}), {})
    assert validation._losses._cache_size() == before


# Other tasks ----------------------------------------------------------------------------------------------------------------


def test_a_classifier_logs_what_it_logs_in_training_of_each_picture_once():
    task = NoisyClassifier(Brightness(3), process.Cosine(), (2, 2, 1), times.Uniform())
    rows = pictures(12)
    params = {"model": {"slope": np.zeros(3, np.float32)}}
    placed = Model(jax.device_put(params, shard.shardings(layout(), params)), None, task)
    got = held_out(rows, num=10, batch=4).figures(placed, {})
    assert got["val_loss"] == pytest.approx(np.log(3), rel=1e-6) and set(got) == {"val_loss", "val_accuracy"}


@dataclasses.dataclass(frozen=True)
class Spread:
    """A loss of a whole batch: the variance of its pictures' means times a gain, and how many there are."""

    noun = "a spread"
    needs, num_classes, shape = (), 0, (2, 2, 1)

    def outputs(self, params, frozen, batch, key, train):
        assert not train
        return jnp.mean(batch["image"], axis=(1, 2, 3))

    def overall(self, params, frozen, outputs, train):
        return params["gain"] * jnp.var(outputs), {"count": jnp.float32(len(outputs)), "remembered": frozen["memory"]["n"]}

    def loss(self, params, frozen, batch, key, train):
        return self.overall(params, frozen, self.outputs(params, frozen, batch, key, train), train)


@pytest.mark.parametrize(("accumulate", "devices"), [(1, 1), (4, 2)])
def test_a_loss_of_a_whole_batch_sees_batches_of_the_runs_own_size(accumulate, devices):
    Spread.init = Spread.memory = Spread.project = lambda self: None
    task, mesh, rows = Spread(), layout(devices), pictures(20)
    assert isinstance(task, WholeBatch)
    params = {"gain": np.float32(2)}
    placed = Model(jax.device_put(params, shard.shardings(mesh, params)), None, task)
    made = held_out(rows, num=19, batch=8, mesh=mesh, accumulate=accumulate)
    got = made.figures(placed, {"n": np.float32(3)})
    index = np.arange(16) * 19 // 16
    means = rows["image"].mean((1, 2, 3))[index].reshape(2, 8)
    assert got == pytest.approx({"val_loss": 2 * means.var(1).mean(), "val_count": 8, "val_remembered": 3}, rel=1e-5)
    few = held_out(pictures(3), num=19, batch=8, mesh=mesh, accumulate=accumulate).figures(placed, {"n": np.float32(3)})
    assert few["val_count"] == (3 if accumulate == 1 else 8)


def traced(task, rows, first=None):
    """The figures of a task by name, with their shapes; nothing is compiled."""
    batch = {name: jnp.asarray(value) for name, value in rows.items()}
    blank = batch | {"image": jnp.zeros(batch["image"].shape)}
    params = jax.eval_shape(task.init, jax.random.key(0), blank)
    mesh = layout()
    where = validation.Layout(mesh, (shard.replicated(mesh),) * len(jax.tree.leaves(params)), "step", (), 1)
    placed = Model(params, first, task)
    if isinstance(task, kinds.AtTimes):
        index = jnp.arange(len(blank["image"]))
        return {"val_loss": validation._losses.eval_shape(placed, where, batch, index, times_of(task, len(index)))}
    return validation._metrics.eval_shape(placed, where, task.memory(), batch, jnp.uint32(0))


@pytest.mark.parametrize(("name", "figures"), [
    ("digits_dvae", {"loss", "reconstruction"}), ("digits_clip", {"loss", "R@1"}), ("digits_classifier", {"loss", "accuracy"}),
    *(pytest.param(name, figures, marks=pytest.mark.slow) for name, figures in (
        ("digits_vae", {"loss", "psnr"}), ("digits_edm2", {"val_loss"}), ("digits_glide", {"val_loss"})))])
def test_every_kind_of_task_has_its_figures(name, figures):
    config = plain(tiny_page(name))
    record = build(config["data"]["decode"])(build(config["data"]["test"])[0])
    rows = {key: np.stack([value] * 4) for key, value in record.items() if not isinstance(value, str)}
    got = traced(task_of(config), rows)
    assert figures <= set(got) and all(leaf.dtype == jnp.float32 for leaf in got.values())


def test_a_model_of_latents_is_validated_on_the_means_of_pictures_of_bytes():
    first = task_of(plain(tiny_page("digits_vae")))
    rows, blank = {"image": np.zeros((4, 8, 8, 1), np.uint8)}, {"image": jnp.zeros((4, 8, 8, 1))}
    weights = jax.eval_shape(first.init, jax.random.key(0), blank)
    task = dataclasses.replace(make("cosine", **BARE), first_stage=first, shape=first.blank(blank)["image"].shape[1:])
    assert traced(task, rows, weights)["val_loss"].shape == (4,)


# Pages ----------------------------------------------------------------------------------------------------------------------


def digits(**changes):
    source = "diffusion_jax.data.digits:Digits"
    decode = dict(name="diffusion_jax.data.image:Decode", size=8, channels=1, flip=True)
    data = dict(train=dict(name=source, split="train"), test=dict(name=source, split="test"), decode=decode)
    return dict(data=data, steps=9, batch=8, accumulate=1, validate=dict(every=4)) | changes


def test_a_page_says_when_and_on_how_many():
    task = make("cosine", shape=(8, 8, 1))
    made = of_page(digits(), dataclasses.replace(task, cond=Nothing()), layout())
    assert [step for step in range(1, 10) if made.due(step)] == [4, 8, 9] and made.num == validation.NUM
    assert made.rows["image"].shape == (256, 8, 8, 1) and made.rows["image"].dtype == np.uint8
    assert set(made.rows) == {"image", "label"}                            # a caption is no number
    assert of_page(digits(validate={}), task, layout()) is None
    few = of_page(digits(validate=dict(every=1, num=5)), dataclasses.replace(task, cond=Nothing()), layout())
    assert few.num == 5 and len(few.rows["image"]) == 5


def test_held_out_data_that_do_not_go_with_the_model_are_refused():
    task = make("cosine", shape=(8, 8, 1))
    reader = make("cosine", cond=TokenMean(9), shape=(8, 8, 1))
    for says, refused in {"has label 9, the model 3 classes": task, "needs 'tokens', which data.test lacks": reader}.items():
        with pytest.raises(ConfigError, match=says) as error:
            of_page(digits(), refused, layout())
        assert "\n" not in str(error.value)


# What the curve says --------------------------------------------------------------------------------------------------------


def curve(*losses):
    return [{"step": 10 * i, "loss": 1.0} for i in range(3)] + [
        {"step": 10 * i + 10, "val_loss": loss} for i, loss in enumerate(losses)]


def test_a_report_has_the_smallest_loss_its_step_and_both_curves():
    got = summary(curve(0.9, 0.5, 0.25))
    assert got == {"validation loss": 0.25, "smallest validation loss": 0.25, "step of the smallest": 30,
                   "losses": {"loss": [[0, 1.0], [10, 1.0], [20, 1.0]], "val_loss": [[10, 0.9], [20, 0.5], [30, 0.25]]}}
    assert summary([{"step": 1, "loss": 2.0}]) == {}


@pytest.mark.parametrize(("losses", "risen"), [
    ((0.9, 0.5, 0.6), True), ((0.9, 0.5, 0.501), False), ((0.5, 0.6), True), ((0.5,), False), ((-0.5, -0.9, -0.8), True)])
def test_a_rise_that_counts_is_a_sentence(losses, risen):
    got = summary(curve(*losses)).get("warnings", [])
    assert bool(got) == risen
    if risen:
        assert "the validation loss has risen since step" in got[0] and "\n" not in got[0]


# Runs -----------------------------------------------------------------------------------------------------------------------


def run_page(**changes):
    """A whole page, of a network of one number."""
    parts = toy_page(LABEL) | dict(
        seed=0, batch=16, accumulate=1, optim=dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=0.1),
        ema=dict(ema=dict(name="diffusion_jax.train.ema:Constant", decay=0.5)), mesh=dict(data=-1, fsdp=1, tensor=1),
        sharding=[[".*", "replicate"]], checkpoint=dict(every=2, keep=3), log_every=1, steps=6,
        evaluate=dict(num=0, guidance=1.0), validate=dict(every=3, num=20))
    parts["sample"] = dict(num=1, every=100, steps=2)
    return parts | changes


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_that_was_interrupted_has_the_same_curve_bit_for_bit(tmp_path, monkeypatch, capsys):
    ask("train", tmp_path / "whole", config=run_page())

    def stopped(watch, step, state, look=train.look):
        look(watch, step, state)
        if step == 5:                                                      # the newest checkpoint is of step 4
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "look", stopped)
        ask("train", tmp_path / "run", config=run_page())
    assert [line["step"] for line in lines(tmp_path / "run") if "val_loss" in line] == [3]
    ask("train", tmp_path / "run", config=run_page())
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    curve = {line["step"]: line["val_loss"] for line in lines(tmp_path / "run") if "val_loss" in line}
    assert list(curve) == [3, 6] and curve[6] < curve[3]
    assert f"validation of step 6: loss {curve[6]:.4g}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loss_is_of_the_average_that_the_run_is_judged_by(tmp_path):
    ask("train", tmp_path, config=run_page())
    logged = [line for line in lines(tmp_path) if "val_loss" in line][-1]
    mesh = layout()
    for which in ("ema", "params"):
        opened = open_run(tmp_path, which=which)
        held_out = of_page(run_page(), opened.task, mesh)
        params = jax.device_put(opened.model.params, shard.shardings(mesh, opened.model.params))
        got = held_out.figures(Model(params, None, opened.task), {})
        assert (got["val_loss"] == pytest.approx(logged["val_loss"], rel=1e-6)) == (which == "ema")


def test_validation_may_change_between_starts_and_changes_no_weights(tmp_path):
    """What a page validates is no part of its mathematics."""
    plain = run_page()
    del plain["validate"]
    ask("train", tmp_path, config=plain | dict(steps=4))
    train.checked(run_page(), tmp_path)
    assert train.checked(plain, tmp_path).held_out is None


@pytest.mark.parametrize(("section", "says"), [
    (dict(num=20), "lacks 'validate.every'"), (dict(every=0), "config.validate.every is 1"),
    (dict(every=2, nmu=3), "did you mean"),
    (dict(every=1, num=10**6), "config.validate.num is 1 ... 100000"), (dict(every="often"), "is a whole number")])
def test_a_section_that_says_nothing_sensible_is_refused(section, says):
    with pytest.raises(ConfigError, match=says):
        page.check(run_page(validate=section))


def test_a_page_without_a_section_takes_one_from_the_command_line():
    config, rest = pages.changed("digits:tiny", ["main", "--config.validate.every=3"])
    assert config.validate.to_dict() == {"every": 3} and rest == ["main"]
    page.check(config.to_dict())


def test_the_report_shows_both_losses_and_says_when_the_second_rises(tmp_path, capsys):
    rows = [dict(step=1, loss=2.0), dict(step=1, val_loss=1.0), dict(step=2, loss=1.0), dict(step=2, val_loss=3.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.write(tmp_path, Measured({"FID[x]": 1.0, "warnings": ["too few"]}))
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["losses"] == {"loss": [[1, 2.0], [2, 1.0]], "val_loss": [[1, 1.0], [2, 3.0]]}
    assert (figures["smallest validation loss"], figures["step of the smallest"]) == (1.0, 1)
    assert figures["warnings"][0] == "too few" and "has risen since step 1, from 1 to 3 at step 2" in figures["warnings"][1]
    said = capsys.readouterr()
    assert "smallest validation loss" in said.out and "[1, 2.0]" not in said.out and "has risen" in said.err
    assert "has risen" in (tmp_path / "report.html").read_text()
