"""Part of the restore matrix that runs on one mesh, in this process or in one of two: save a toy run, and go on from others."""
from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import train_toy
from jax.experimental import multihost_utils

from diffusion_jax.train import loop, shard
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.log import Writer

SAVED = 4
RULES = ((".*", "fsdp"),)


class Seen(Checkpoints):
    """Checkpoints that remember the parameters that were restored, whole."""

    restored = None

    def restore_latest(self, abstract):
        """As `Checkpoints`."""
        state = super().restore_latest(abstract)
        if state is not None:
            mesh = jax.tree.leaves(state.params)[0].sharding.mesh
            whole = jax.jit(lambda x: x, out_shardings=shard.replicated(mesh))(state.params)
            self.restored = jax.tree.map(np.asarray, whole)
        return state


def run(workdir: Path, mesh: jax.sharding.Mesh, steps: int) -> dict[str, np.ndarray]:
    """Trains to `steps`; {path: parameter} of what was restored, and 'loss' of the last step."""
    config = train_toy.config(steps=steps)
    with Seen(workdir, config, every=SAVED, may_change=("steps",)) as kept, Writer(workdir) as writer:
        for _ in loop.steps(**train_toy.arguments(config, mesh, rules=RULES), checkpoints=kept, writer=writer):
            pass
    leaves = jax.tree.leaves_with_path(kept.restored or {})
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if jax.process_index() == 0:
        found["loss"] = np.float64(json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
    return found


def go_on(folder: Path, place: str, mesh: jax.sharding.Mesh, saved: list[str]) -> None:
    """Goes on for one step from each run in folder/saved/<where>, on this mesh; folder/results/<where> -> <place>.npz."""
    for where in saved:
        copy = folder / "copies" / f"{where} -> {place}"
        if jax.process_index() == 0:
            shutil.copytree(folder / "saved" / where, copy)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"copied {where}")
        found = run(copy, mesh, SAVED + 1)
        if jax.process_index() == 0:
            np.savez(folder / "results" / f"{where} -> {place}.npz", **found)


if __name__ == "__main__":
    target, index, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    together = shard.make_mesh(data=-1, fsdp=2)
    run(target / "saved" / "2 x 4", together, SAVED)
    go_on(target, "2 x 4", together, ["1", "8", "2 x 4"])
