"""Pages of configs/ as tests need them, and what commands do."""
import importlib.util
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


def page(name, arg="tiny", **changes):
    """A page of configs/ with some of its top-level keys changed."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg)
    config.update(changes)
    return config


def files(folder):
    """The contents of a folder, to see that nothing was lost."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def tear_writes(monkeypatch):
    """From here on an npz is written whole and then its writer is interrupted, as by Ctrl-C just before its last line."""
    import numpy as np

    savez = np.savez

    def torn(file, **arrays):
        savez(file, **arrays)
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", torn)


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def refused(result, *says):
    """Whether a command ended with code 2 and one line that says all of these."""
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    return result.code == 2 and len(errors) == 1 and "Traceback" not in result.err and all(word in errors[0] for word in says)


def ask(mode, workdir, **leaves):
    """Runs a mode with Options of flat leaves, made as the command line makes them: ask('sample', folder, num=4, steps=2)."""
    import importlib

    from diffusion_jax.modes.options import built

    module = importlib.import_module(f"diffusion_jax.modes.{mode}")
    module.run(built(module.Options, leaves), str(workdir))


def measuring(changes=None, swept="", **leaves):
    """What evaluation/ is asked, of flat leaves as the command line has them: measuring(num=20, changes={"steps": 2})."""
    from dataclasses import replace

    from diffusion_jax.modes.evaluate import Options
    from diffusion_jax.modes.options import built

    return replace(built(Options, leaves).for_evaluation(swept), changes=changes or {})


def without_data(name, workdir, **sections):
    """A page's model as imports leave one: without data, and here without weights."""
    from diffusion_jax.runs.folder import Model, Run
    from diffusion_jax.train.state import task_of

    config = page(name).to_dict()
    config = {part: config[part] for part in ("model", "task") if part in config} | sections
    return Run(str(workdir), 0, "params", config, Model({}, None, task_of(config)))
