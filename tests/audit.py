"""Makes every part of pages with drawn arguments under an audit hook, and prints what they did to the machine as JSON.

    python tests/audit.py FOLDER          FOLDER holds a file 'victim'

A program of its own, because an audit hook cannot be taken away again.
"""
import builtins
import importlib
import inspect
import json
import os
import random
import sys
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.build import build
from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.parts import KINDS, SLOTS

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HARMFUL = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime",
    "os.putenv", "os.unsetenv", "os.chdir", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill",
    "shutil.", "socket.", "subprocess.", "ctypes.dlopen", "tempfile.", "webbrowser.", "urllib.", "ftplib.", "http.", "smtplib.",
    "pickle.find_class", "marshal.", "code.__new__", "setattr", "builtins.input", "sys.settrace", "sys.setprofile", "signal.",
)
TRIES = 16


class Watch:
    """The hook; it records while `on`."""

    def __init__(self):
        self.on = False
        self.events = []

    def __call__(self, event, arguments):
        if not self.on:
            return
        if event == "open" and len(arguments) == 3:
            mode, flags = str(arguments[1] or ""), arguments[2] or 0
            if set(mode) & set("wax+") or flags & WRITES:
                self.events.append(f"open {arguments[0]} {mode} {flags}")
        elif event == "import":
            if not str(arguments[0]).startswith("diffusion_jax."):
                self.events.append(f"import {arguments[0]}")
        elif event.startswith(HARMFUL):
            self.events.append(f"{event} {arguments}"[:200])


def anything(rng, folder, objects, depth=0):
    """A value that a config, or somebody in Python, might give."""
    victim = f"{folder}/victim"
    kinds = [
        lambda: rng.choice([victim, folder, f"{victim}.new", f"{folder}/new/x", "", "x", "../x", "http://localhost:9/x", "gs://bucket/x",
                            "`touch x`", "$(touch x)", "mean", "train"]),
        lambda: rng.choice([0, 1, 2, 3, 8, -1, 77, 1000]),
        lambda: rng.choice([0.0, 0.5, 1.0, -1.0, float("nan"), float("inf")]),
        lambda: rng.choice([None, True, False]),
        lambda: {"name": rng.choice([*objects, "os:system", "diffusion_jax.data.pictures:save_png"]), "path": victim},
    ]
    if depth < 2:
        kinds.append(lambda: tuple(anything(rng, folder, objects, depth + 1) for _ in range(rng.randrange(4))))
        keys = rng.sample(["a", "b", "path", "name"], 2)
        kinds.append(lambda: {key: anything(rng, folder, objects, depth + 1) for key in keys})
    return rng.choice(kinds)()


def plausible(rng, folder, parameter, place, objects):
    """A value of the kind that an option has, so that it is made; now and then any other."""
    name, text = parameter.name, str(parameter.annotation)
    kind = SLOTS.get(f"{place}.{name}", SLOTS.get(name))
    if rng.random() < 0.15:
        return anything(rng, folder, objects)
    if name in ("process", "unit", "w"):
        return {"process": DDPM(), "unit": DDPM().unit, "w": 2.0}[name]
    if parameter.default is not parameter.empty and rng.random() < 0.3:
        return parameter.default
    if "Module" in text or (kind and not {"int", "float", "str"} & set(text.replace("|", " ").split())):
        made = [thing for other, thing in objects.items() if KINDS[other] == kind and thing is not None]
        one = rng.choice(made) if made else None
        return (one,) if "tuple" in text else {"model": one} if "Mapping" in text else one
    if "tuple" in text:
        return rng.choice([(1, 2), (8, 8, 1), (8, 8, 3), ()]) if "str" not in text else (f"{folder}/victim", "b")
    if "str" in text:
        return rng.choice([f"{folder}/victim", f"{folder}/new", "train", ""])
    return rng.choice([1, 2, 8, 16]) if "int" in text else rng.choice([0.1, 0.5, 1.0])


def state():
    """What of the process could be changed: environment, paths, random numbers, JAX's configuration."""
    return {"environment": dict(os.environ), "folder": os.getcwd(), "path": [*sys.path], "random": random.getstate()[1][:9],
            "numpy": np.random.get_state()[1].tolist(), "jax": repr(jax.config.values), "builtins": sorted(vars(builtins))}


def main(folder):
    targets, objects = {}, {}
    for name in KINDS:
        module, _, attribute = name.partition(":")
        targets[name] = getattr(importlib.import_module(module), attribute)
    objects |= {name: thing for name, target in targets.items() if (thing := tried(target, {})) is not None}
    rng, watch = random.Random(0), Watch()
    sys.addaudithook(watch)
    # Twice: what JAX imports when it is first used is no news the second time.
    for watched in (False, True):
        made, before = dict.fromkeys(targets, 0), state()
        watch.on = watched
        for name, target in targets.items():
            place = name.partition(":")[2]
            parameters = [p for p in inspect.signature(target).parameters.values() if p.name != "parent"]
            for _ in range(TRIES):
                some = [p for p in parameters if p.default is p.empty or rng.random() < 0.3]
                options = {p.name: plausible(rng, folder, p, place, objects) for p in some}
                thing = tried(target, options)
                if thing is not None:
                    objects.setdefault(name, thing)
                    made[name] += 1
                tried(build, {"spec": {**options, "name": name}})
                tried(build, {"spec": {p.name: anything(rng, folder, objects) for p in some} | {"name": name}})
        watch.on = False
    changed = [part for part, value in state().items() if value != before[part]]
    Path(folder, "log.json").write_text(json.dumps({"events": sorted(set(watch.events)), "changed": changed, "made": made}))


def tried(call, options):
    """What a call returns; None where it refuses."""
    try:
        thing = call(**options)
        repr(thing)
        return thing
    except Exception:
        return None


if __name__ == "__main__":
    main(sys.argv[1])
