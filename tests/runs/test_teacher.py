"""The model that a run learns from: how it becomes a part of the run, and stays one."""
import shutil

import jax
import numpy as np
import pytest
from pages import ask
from pages import page as page_of

from diffusion_jax.build import ConfigError
from diffusion_jax.planning.layouts import work_of
from diffusion_jax.runs import teacher
from diffusion_jax.runs.folder import open_run, save_start
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train.state import plain, task_of


def weights_of(config, seed=0):
    task = task_of(config)
    batch = {"image": np.zeros((1, *task.shape), np.float32), "label": np.zeros(1, np.int32)}
    return jax.jit(task.init)(jax.random.key(seed), batch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    config = plain(page_of("digits"))
    save_start(folder, config, weights_of(config))
    return folder


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_its_task_and_weights_become_parts_of_the_run(folder, tmp_path):
    config = plain(page_of("digits_consistency", teacher=str(folder)))
    joined = teacher.read(config, str(tmp_path))
    task = task_of(joined.config)
    assert isinstance(task.teacher, Diffusion) and task.teacher == task_of(plain(page_of("digits")))
    equal(joined.params, open_run(folder).model.params)
    assert not list(tmp_path.iterdir())
    joined.keep()
    equal(open_run(tmp_path / "teacher").model.params, joined.params)


def test_a_run_goes_on_with_its_copy_and_a_start_without_a_checkpoint_anew(folder, tmp_path):
    config = plain(page_of("digits_consistency", teacher=str(folder)))
    other = plain(page_of("digits"))
    save_start(tmp_path / "run" / "teacher", {key: other[key] for key in ("task", "model")}, weights_of(other, 1))
    started = teacher.read(config, str(tmp_path / "run"))
    started.keep()
    equal(open_run(tmp_path / "run" / "teacher").model.params, open_run(folder).model.params)
    save_start(tmp_path / "run", started.config, weights_of(started.config))
    resumed = teacher.read({**config, "teacher": "gone"}, str(tmp_path / "run"))
    equal(resumed.params, started.params)
    assert resumed.config["task"] == started.config["task"]


def test_a_page_without_one_stays_as_it_is(tmp_path):
    config = plain(page_of("digits_consistency"))
    joined = teacher.read({**config, "teacher": ""}, str(tmp_path))
    joined.keep()
    assert joined.config == config and joined.params is None and not list(tmp_path.iterdir())


def test_guidance_of_nobody_is_refused(tmp_path):
    config = plain(page_of("digits_consistency"))
    with pytest.raises(ConfigError, match="name its folder in config.teacher"):
        teacher.read({**config, "task": {**config["task"], "guidance": 2.0}}, str(tmp_path))


@pytest.mark.parametrize("name, changes, says", [
    ("digits", {"teacher": "FOLDER"}, "config.teacher is for tasks.consistency:Consistency"),
    ("digits_consistency", {"teacher": 3}, "is the folder of a run, got 3"),
    ("digits_consistency", {"teacher": "nowhere"}, "there is no folder"),
    ("digits_consistency", {"teacher": "STUDENT"}, "config.teacher .* holds a consistency model: give the folder of"),
])
def test_refusals(folder, tmp_path, name, changes, says):
    student = plain(page_of("digits_consistency"))
    save_start(tmp_path / "student", student, {"model": {"a": np.zeros(1)}, "cond": {}})
    places = {"FOLDER": str(folder), "STUDENT": str(tmp_path / "student")}
    changes = {"teacher": places.get(changes["teacher"], changes["teacher"])}
    with pytest.raises(ConfigError, match=says):
        teacher.read({**plain(page_of(name)), **changes}, str(tmp_path / "run"))


def test_a_plan_does_not_leave_it_out_silently():
    with pytest.raises(ConfigError, match="leave config.teacher out"):
        work_of(plain(page_of("digits_consistency", "distilled")))


@pytest.mark.slow
def test_distillation_resumes_bit_for_bit_though_the_teacher_is_gone(folder, tmp_path):
    """Validated on the way, by the teacher too; and what is trained knows nothing of it when it samples."""
    lent = tmp_path / "lent"
    shutil.copytree(folder, lent)
    page = page_of("digits_consistency", teacher=str(lent), init=str(lent), steps=4, validate=dict(every=2, num=32))
    page.evaluate.num = 0
    ask("train", tmp_path / "whole", config=page)
    page.steps = 2
    ask("train", tmp_path / "parts", config=page)
    shutil.rmtree(lent)
    page.steps = 4
    ask("train", tmp_path / "parts", config=page)
    whole, parts = (open_run(tmp_path / name, which="params") for name in ("whole", "parts"))
    assert whole.step == parts.step == 4 and whole.model.teacher is None
    equal(whole.model.params, parts.model.params)
    ask("sample", tmp_path / "parts", num=2, steps=1, out=str(tmp_path / "x.png"))
