"""A LoRA's base becomes part of the run, and what is opened is both of them merged."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import page as page_of

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.lora import merged
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.runs import initial, lora
from diffusion_jax.runs.folder import BASE, Model, Run, open_run, save_start
from diffusion_jax.tasks.lora import BASE as OF_TASK
from diffusion_jax.tasks.lora import LowRank
from diffusion_jax.train import shard
from diffusion_jax.train.state import plain, task_of

BATCH = {"image": np.zeros((1, 8, 8, 1), np.float32), "label": np.zeros(1, np.int32)}
SECTION = {"rank": 2, "alpha": 6.0}


def drawn(task, seed):
    shapes = shapes_of(task.init, jax.random.key(0), BATCH)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def config_of(base, **changes):
    return plain(page_of("digits")) | {"init": str(base), "lora": SECTION} | changes


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(the folder, the weights) of a run that nobody trained."""
    folder, config = tmp_path_factory.mktemp("base") / "run", plain(page_of("digits"))
    params = drawn(task_of(config), 0)
    save_start(folder, config, params)
    return folder, params


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """(the folder, the factors) of a LoRA on it."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    joined = lora.read(config_of(base[0]), str(folder))
    factors = drawn(LowRank(task_of(joined.config), 2, 6.0), 1)
    joined.keep()
    save_start(folder, joined.config, factors)
    return folder, factors


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_without_one_nothing_changes(tmp_path):
    config = plain(page_of("digits"))
    joined = lora.read(config, str(tmp_path))
    joined.keep()
    assert joined.config == config and joined.base is None and not list(tmp_path.iterdir())
    assert joined.placed(shard.make_mesh()) == {} and joined.rules == ((".*", "replicate"),)
    opened = Run("x", 0, "ema", config, Model({}, None, task_of(config)))
    assert lora.trained(opened) is opened.task and lora.frozen(opened) is None and lora.whole(opened, {"a": 1}) == {"a": 1}


def test_what_is_opened_is_the_base_with_the_factors(base, run):
    opened = open_run(run[0])
    assert same(opened.model.params, merged(base[1], run[1], 3.0)) and not same(opened.model.params, base[1])
    assert opened.digest != open_run(base[0]).digest and opened.which == "params"


def test_the_base_takes_no_room_and_stays_when_its_folder_goes(base, run, tmp_path):
    files = [path for path in (run[0] / BASE).rglob("*") if path.is_file()]
    assert files and all(path.stat().st_nlink == 2 for path in files)
    source, target = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base[0], source)
    joined = lora.read(config_of(source), str(target))
    joined.keep()
    save_start(target, joined.config, run[1])
    shutil.rmtree(source)
    assert same(open_run(target).model.params, open_run(run[0]).model.params)
    again = lora.read(config_of(source), str(target))
    again.keep()
    assert again.config == joined.config and same(again.base, base[1])


def test_an_unfinished_start_with_another_base_is_replaced(base, tmp_path):
    other = tmp_path / "other"
    save_start(other, plain(page_of("digits")), drawn(task_of(plain(page_of("digits"))), 5))
    lora.read(config_of(other), str(tmp_path / "run")).keep()
    joined = lora.read(config_of(base[0]), str(tmp_path / "run"))
    joined.keep()
    joined.keep()                                                             # what is there already stays
    assert same(open_run(tmp_path / "run" / BASE).model.params, base[1])


def test_a_lora_without_its_base_says_what_to_do(base, run, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(run[0], alone)
    shutil.rmtree(alone / BASE)
    with pytest.raises(ConfigError, match=r"holds a LoRA without the run that it changes: copy or link that to .*alone/base"):
        open_run(alone)
    (alone / BASE).symlink_to(base[0])
    assert same(open_run(alone).model.params, open_run(run[0]).model.params)
    (alone / BASE).unlink()
    save_start(alone / BASE, plain(page_of("digits")), drawn(task_of(plain(page_of("digits"))), 5))
    with pytest.raises(ConfigError, match="holds other weights than those that the LoRA in .* was trained on"):
        open_run(alone)


@pytest.mark.parametrize("changes, says", [
    ({"init": {"model": "x:model"}}, "config.init is its folder, got"), ({"init": None}, "config.init is its folder, got None"),
    ({"snapshots": {"every": 1}}, "config.snapshots is for whole weights"), ({"gather": "use"}, "config.gather='use' is for"),
    ({"optim": {"powersgd": 2}}, "config.optim.powersgd is for whole"),
    ({"lora": {"base": 3}}, "config.lora.base is 3, the weights in"),
    ({"init": "nowhere"}, "there is no folder"),
])
def test_pages_that_do_not_go_with_one_are_refused(base, tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        lora.read(config_of(base[0], **changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_lora_of_a_lora_is_refused_and_training_on_from_its_merged_weights_is_not(run, tmp_path):
    with pytest.raises(ConfigError, match="is a LoRA itself: give the run that it changes"):
        lora.read(config_of(run[0]), str(tmp_path))
    parts = initial.initial_of({"init": str(run[0])})
    assert same(parts[""], open_run(run[0]).model.params)


def test_what_a_run_trains_and_what_its_samples_see(base, run):
    """The base lies on the devices as the page's rules split weights, and what is merged as the base."""
    config = config_of(base[0], sharding=[["mlp", "fsdp"], [".*", "replicate"]])
    joined = lora.read(config, str(run[0]) + "-new")
    mesh = shard.make_mesh(data=2, fsdp=4)
    model = Model(joined.placed(mesh), None, task_of(joined.config))
    opened = Run("x", 0, "ema", joined.config, model)
    assert lora.trained(opened) == LowRank(model.task, 2, 6.0) and joined.rules == shard.REPLICATE
    assert lora.frozen(opened) == {OF_TASK: model.params}
    assert not model.params["model"]["blocks"]["mlp"]["fc1"]["kernel"].sharding.is_fully_replicated
    whole = lora.whole(opened, run[1])
    for x, before in zip(jax.tree.leaves(whole), jax.tree.leaves(model.params), strict=True):
        assert x.sharding == before.sharding
    np.testing.assert_allclose(whole["model"]["blocks"]["attn"]["qkv"]["kernel"],
                               merged(base[1], run[1], 3.0)["model"]["blocks"]["attn"]["qkv"]["kernel"], rtol=1e-6)
    with pytest.raises(ConfigError, match="no kernel's path matches"):
        lora.trained(opened._replace(config=config_of(base[0], lora={"layers": "nothing"})))
