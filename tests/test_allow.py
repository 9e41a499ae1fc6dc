"""Who may be named in a config: attacks that are refused before anything runs, and packages that the user allows."""
import contextlib
import json
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from pages import ROOT
from pages import page as page_of

from diffusion_jax import build as builds
from diffusion_jax.build import ConfigError, allow, build, symbol
from diffusion_jax.data.latents import Latents
from diffusion_jax.modes import train
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.session import replayed, story_in
from diffusion_jax.runs import page
from diffusion_jax.runs.folder import open_run, save_start
from diffusion_jax.train.checkpoint import config_of, load
from diffusion_jax.train.state import plain, task_of

PLAIN = plain(page_of("digits"))
PACKAGE = "import subprocess\n\n\ndef thing(x=1):\n    return x\n\n\ndef _hidden():\n    return 2\n\n\nrun = subprocess.run\n"


@pytest.fixture
def allowed(monkeypatch):
    """Nothing is allowed at first, and what a test allows is not when it has ended."""
    packages = set()
    monkeypatch.setattr(builds, "_allowed", lambda: packages)
    return packages


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Folders of packages on Python's path, which leave no trace."""
    before = set(sys.modules)
    for name in ("mypkg", "mypkg_evil", "mypkg/nets"):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "own")
    yield tmp_path / "own"
    for name in set(sys.modules) - before:
        if name.startswith("mypkg"):
            del sys.modules[name]


def attack(victim):
    """Writes over a file, if it is built: the spec of a writer of this package."""
    return {"name": "diffusion_jax.evaluation.report:write", "workdir": str(victim.parent), "measured": {"name": victim.name}}


WRITERS = (
    "evaluation.report:write", "data.pictures:save_png", "data.pictures:save_npz", "train.checkpoint:Checkpoints",
    "train.process:keep_compiled", "data.source:read_json", "data.source:existing", "files:whole", "train.log:Writer", "main:run",
    "runs.folder:save_start", "modes.train:run", "build:allow", "build:build", "runs.pages:read", "data.latents:Writer",
    "models.dit:Block",
)
OURS = ("build:importlib", "build:_made", "diffusion.process:__builtins__", "diffusion.process:__loader__", ".modes.train:run",
        "modes.train:run\n", "diffusion.process:Flow ", "diffusion.process:Flow\n", "diffusion.process:Flow.__init__",
        "diffusion.process:Fl\u200bow", "diffusion.process:\uff26low", "diffusion.process::Flow", "diffusion.process",
        "diffusion.process:Flow()", "diffusion._process:Flow", "diffusion.process:Flow:Flow", "diffusion.process:flow")
OTHERS = (
    "\ndiffusion_jax.diffusion.process:Flow", "diffusion_j\u0430x.diffusion.process:Flow", "diffusion_jax/diffusion/process:Flow",
    "./diffusion_jax.diffusion.process:Flow", "diffusion_jax:build", "diffusion_jax", "diffusion_jax_evil.x:f", "os:system",
    "os.path:join", "posix:system", "builtins:eval", "__main__:x", "subprocess:Popen", "numpy:load", "jax:device_put",
    "importlib:import_module", "", ":", "a:b:c", 3, None, True, ["a"], {"name": "diffusion_jax.diffusion.process:Flow"},
    "x" * 100_000,
)
NAMES = [*(f"diffusion_jax.{name}" for name in (*WRITERS, *OURS)), *OTHERS]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:60])
def test_names_that_no_config_may_have(name, allowed):
    imported = set(sys.modules)
    for refuse in (symbol, lambda name: build({"name": name}), lambda name: builds.check_names({"a": [{"name": name}]})):
        with pytest.raises(ConfigError) as error:
            refuse(name)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert set(sys.modules) == imported                                                   # not even imported


def changed(place, value):
    """The tiny page of the digits, with another value at 'section.key'."""
    config = json.loads(json.dumps(PLAIN))
    *outer, last = place.split(".")
    section = config
    for key in outer:
        section = section.setdefault(key, {})
    section[last] = value
    return config


PLACES = (
    "task.cond.dropout", "task.cond", "task.cond.width", "task", "model", "model.depth", "data.decode", "data.decode.tokenizer",
    "data.train.split", "optim", "optim.lr", "optim.no_decay", "ema.ema", "ema.evil", "task.drop.label", "sample.sampler",
    "sample.steps", "sample.evil", "evaluate.features", "task.first_stage", "sharding", "checkpoint.every", "seed",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [1, [x]], lambda x: {"x": x}], ids=["bare", "list", "mapping"])
def test_an_attack_is_refused_wherever_it_stands(place, wrap, tmp_path, allowed):
    """In a page that is trained, and in a checkpoint's config, where whatever opens it refuses it."""
    (tmp_path / "victim").write_text("precious")
    config = changed(place, wrap(attack(tmp_path / "victim")))
    with pytest.raises(ConfigError):
        page.check(config)
    folder = tmp_path / "run" / "checkpoints" / "3"
    for part in ("state", "config"):
        (folder / part).mkdir(parents=True)
    (folder / "config" / "metadata").write_text(json.dumps(config))
    for opens in (config_of, load, open_run):
        with pytest.raises(ConfigError, match=str(folder)):
            opens(tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"victim", "run"}


@pytest.mark.parametrize("text", [
    "diffusion_jax.evaluation.report:write,workdir=x", "diffusion_jax.models.dit:DiT", "os:system,command=true",
    "ddim,eta=os:system", "__import__('os')", "ddim,noise=x", "ddim,process=x", "diffusion_jax.diffusion.samplers:ddim",
    "mypkg:thing", {"name": "os:system"}])
@pytest.mark.parametrize("field", ["sampler", "times", "schedule", "cads"])
def test_a_text_names_a_sampler_and_nothing_else(field, text, allowed):
    with pytest.raises(ConfigError):
        Recipe.of({field: text})


def test_an_index_of_latents_builds_nothing(tmp_path, allowed):
    (tmp_path / "victim").write_text("precious")
    spec = attack(tmp_path / "victim")
    (tmp_path / "latents.json").write_text(json.dumps({"names": spec, "mean": [spec], "std": [0.5], "shape": spec}))
    with contextlib.suppress(ConfigError):
        assert all(isinstance(name, str) for name in Latents(str(tmp_path)).names)
    assert (tmp_path / "victim").read_text() == "precious" and len(list(tmp_path.iterdir())) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The tiny digits, untrained: all weights are zero."""
    folder = tmp_path_factory.mktemp("untrained") / "run"
    config = {key: PLAIN[key] for key in ("model", "task", "data")} | {"sample": {"steps": 2}}
    batch = {"image": np.zeros((1, 8, 8, 1), np.float32), "label": np.zeros(1, np.int32)}
    shapes = jax.eval_shape(task_of(config).init, jax.random.key(0), batch)
    save_start(folder, config, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    return folder


@pytest.mark.parametrize("key", ["sampler", "strength", "label", "prompt", "steps", "seed", "guidance", "name", "rect"])
def test_a_session_builds_nothing(key, run, tmp_path, allowed):
    (tmp_path / "victim").write_text("precious")
    story = {"image": "x.png", "edits": [{"rect": [[0, 0, 4, 4]], key: attack(tmp_path / "victim")}]}
    (tmp_path / "story.json").write_text(json.dumps(story))
    pipe = Pipeline(open_run(run), Recipe(steps=2))
    with pytest.raises(ConfigError):
        replayed(pipe, story_in(tmp_path / "story.json"))
    assert (tmp_path / "victim").read_text() == "precious" and len(list(tmp_path.iterdir())) == 2


def test_a_first_stage_s_config_is_one_from_elsewhere_too(run, tmp_path, allowed):
    shutil.copytree(run, tmp_path / "first")
    task = {"name": "diffusion_jax.tasks.autoencoder:Autoencoder", "shape": [8, 8, 1], "losses": attack(tmp_path / "victim")}
    (tmp_path / "first" / "checkpoints" / "0" / "config" / "metadata").write_text(json.dumps({"task": task}))
    with pytest.raises(ConfigError, match="report"):
        train.checked(PLAIN | {"first_stage": str(tmp_path / "first")}, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists() and not (tmp_path / "victim").exists()


@pytest.mark.parametrize(("config", "says"), [
    ([1, 2], "list and no mapping"), ("x", "str and no mapping"), (3, "int and no mapping"), (None, "no mapping"),
    ({}, "no section 'task'"),
    ({"task": 3}, "no section 'task'"), ({"task": {}}, "no section 'task'"), ({"model": PLAIN["model"]}, "it has: model"),
    (changed("model.depth", -1), "depth of diffusion_jax.models.dit:DiT is 0 ... 1000, got -1"),
    (changed("model.depth", 1e9), "depth of diffusion_jax.models.dit:DiT is a whole number, got 1000000000.0"),
    (changed("model.depth", 10**9), "is 0 ... 1000, got 1000000000"),
    (changed("model.width", "888"), "width of .* is a whole number, got '888'"),
    (changed("task.shape", "888"), "shape of .* is a list of 3 times a whole number, got '888'"),
    (changed("task.shape", [8, 8]), "shape of .* is a list of 3 times"),
    (changed("task.shape", [8, 8, 10**9]), "shape of .* is 0 ... 16384"),
    (changed("task.process.steps", 10**10), "steps of .*DDPM is 1 ... 1000000, got 10000000000"),
    (changed("task.process.steps", 1e10), "steps of .*DDPM is a whole number"),
    (changed("task.process.schedule", 3), "schedule of .* is a text, got 3"),
    (changed("task.drop", {"label": float("nan")}), "drop of .* not finite"),
    (changed("task.drop", {"label": 3}), "drop of .* is 0 ... 1, got 3"),
    (changed("task.cond", PLAIN["model"]), "cond of .* is one of the conditioners"),
    (changed("task.process", None), "process of .* is one of the processes"),
    (changed("model", PLAIN["task"]["cond"]), "config.model is one of the networks"),
    (changed("task", PLAIN["model"]), "config.task is one of the tasks"),
    (changed("data.train", PLAIN["data"]["decode"]), "config.data.train is one of the data sets"),
    (changed("data", []), "config.data is a section"), (changed("data", {}), "lacks 'data.decode'"),
    (changed("sample.steps", 10**10), "config.sample.steps is 1 ... 1000000"),
    (changed("sample", [1]), "config.sample is a section"),
    (changed("seed", -1), "config.seed is 0 ... 4294967295, got -1"), (changed("stepz", 1), "did you mean 'steps'"),
    (changed("a.b.c", 1), "unknown config key 'a'"), (changed("task.x", {"a.b": 1}), "no key of a config has a dot"),
    (changed("task.cond", json.loads('{"a":' * 60 + "1" + "}" * 60)), "at most 40 levels"),
    (changed("task.x", [0] * 100_001), "100,000 entries"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_stored_config_is_checked_when_it_is_read(config, says, run, tmp_path, allowed):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "0" / "config" / "metadata").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=says) as error:
        open_run(tmp_path / "run")
    message = str(error.value)
    assert message.startswith(f"the config in {tmp_path / 'run' / 'checkpoints' / '0'}: ")
    assert "\n" not in message and len(message) < 500


def test_opening_a_run_is_not_slower_for_its_checks(allowed):
    def once():
        before = time.perf_counter()
        page.check_stored(PLAIN)
        builds.check(PLAIN["task"], model=None)
        builds.check(PLAIN["model"])
        return time.perf_counter() - before

    assert min(once() for _ in range(20)) < 0.005


# Packages of the user's own -------------------------------------------------------------------------------------------------


def test_a_package_that_is_not_allowed_is_not_imported_and_the_error_names_the_flag(own, allowed):
    with pytest.raises(ConfigError, match=r"give --allow mypkg \(or DIFFUSION_JAX_ALLOW=mypkg\).*its code will run"):
        build({"name": "mypkg.nets:thing"})
    assert not [name for name in sys.modules if name.startswith("mypkg")]


def test_what_is_allowed_covers_what_lies_in_it(own, allowed):
    allow("mypkg")
    assert build({"name": "mypkg:thing", "x": 3}) == 3 and build({"name": "mypkg.nets:thing", "x": {"a": [1]}}) == {"a": (1,)}
    with pytest.raises(ConfigError, match="--allow mypkg_evil"):
        symbol("mypkg_evil:thing")
    with pytest.raises(ConfigError, match="unknown symbol in mypkg 'run'"):               # of subprocess, not its own
        symbol("mypkg:run")
    with pytest.raises(ConfigError, match="is not 'diffusion_jax"):
        symbol("mypkg:_hidden")
    with pytest.raises(ConfigError, match="unknown option of mypkg:thing 'y'"):
        build({"name": "mypkg:thing", "y": 3})
    with pytest.raises(ConfigError, match="no module 'mypkg.nest'"):
        symbol("mypkg.nest:thing")


def test_a_part_of_a_package_can_be_allowed_alone(own, allowed):
    allow("mypkg.nets")
    assert symbol("mypkg.nets:thing")() == 1
    with pytest.raises(ConfigError, match="--allow mypkg"):
        symbol("mypkg:thing")


@pytest.mark.parametrize("name", [
    "", "my pkg", "my-pkg", "mypkg:thing", "mypkg.", ".mypkg", "a,b", "../x", "os", "subprocess", "builtins", "os.path",
    "diffusion_jax", "diffusion_jax.modes", "mypkg\n", "_private", "p\u00e4ckchen"])
def test_what_is_no_package_of_one_s_own_cannot_be_allowed(name, allowed):
    with pytest.raises(ConfigError, match="--allow"):
        allow(name)
    assert not allowed


def test_the_environment_allows_too(own):
    program = ("from diffusion_jax.build import build, symbol, ConfigError\nprint(build({'name': 'mypkg:thing'}))\n"
               "try:\n    symbol('mypkg_evil:thing')\nexcept ConfigError as error:\n    print(error)\n")
    environment = {"PYTHONPATH": f"{ROOT}:{own}", "DIFFUSION_JAX_ALLOW": " other, mypkg ,", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=100)
    assert done.stdout.startswith("1\n") and "--allow mypkg_evil" in done.stdout, done.stderr
