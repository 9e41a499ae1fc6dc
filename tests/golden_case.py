"""A golden case: inputs, weights and expected outputs of an official run (see goldens/README.md)."""
from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """What a routine is given.

    Attributes:
      doc: the whole json.
      config: its options, under the names of the official code.
      inputs: name -> array.
      weights: official key -> float32 array, made by the README's rule.
      want: output name -> expected array (flattened and strided where doc['outputs'] says so).
      file: the json, for cases that have more files beside it.
    """

    doc: dict[str, Any]
    config: dict[str, Any]
    inputs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    want: dict[str, np.ndarray]
    file: Path


def load(file: Path) -> Case:
    """Reads a case; a key list has no arrays, and wants the shape of every key."""
    doc = json.loads(file.read_text())
    arrays = {}
    if doc["kind"] != "keys":
        with np.load(file.with_suffix(".npz")) as npz:
            arrays = {key: npz[key] for key in npz.files}
    inputs, want, stored = (
        {key.removeprefix(part): a for key, a in arrays.items() if key.startswith(part)} for part in ("in/", "out/", "param/")
    )
    for name, rule in doc.get("input_rules", {}).items():
        inputs[name] = np.float32(np.random.RandomState(rule["seed"]).random_sample(rule["shape"]))
    for checkpoint, keys in doc.get("keys", {}).items():
        want |= {f"{checkpoint}/{key}": np.array(shape, np.int64) for key, shape in keys.items()}
    return Case(doc, doc.get("config", {}), inputs, _weights(doc, stored), want, file)


def _weights(doc: dict[str, Any], stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The README's rule: a normal draw for each key, seeded by the case and the key."""
    rule, out = doc.get("weights", {}), dict(stored)
    for key, spec in rule.get("tensors", {}).items():
        if "same_as" in spec:
            out[key] = out[spec["same_as"]]
            continue
        seed = zlib.crc32(f"{rule['seed']}/{key}".encode()) & 0x7FFFFFFF
        draw = np.random.RandomState(seed).standard_normal(spec["shape"])
        if spec.get("abs"):
            draw = np.abs(draw)
        if "rows" in spec:
            draw = draw * np.resize(spec["rows"], draw.shape[0]).reshape((-1,) + (1,) * (draw.ndim - 1))
        out[key] = np.asarray(spec["mean"] + spec["std"] * draw, np.float32)
    return out


def compare(case: Case, found: dict[str, Any]) -> list[str]:
    """The outputs of `found` that miss their expectation, one line each."""
    problems = []
    for name, want in case.want.items():
        if name not in found:
            problems.append(f"{name}: not computed")
            continue
        spec = case.doc.get("outputs", {}).get(name, {})
        got, full = np.asarray(found[name]), tuple(spec.get("shape", want.shape))
        if got.shape != full:
            problems.append(f"{name}: shape {got.shape}, expected {full}")
            continue
        rtol, atol = (np.zeros(full),) * 2 if want.dtype.kind in "iub" else _tolerance(case, name, full)
        got, rtol, atol = (a.reshape(-1)[:: spec["stride"]] for a in (got, rtol, atol)) if "stride" in spec else (got, rtol, atol)
        problems += _misses(name, got, want, rtol, atol)
    return problems


def _tolerance(case: Case, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(rtol, atol) of every element of an output: its own entry goes before the global one."""
    tolerance = case.doc["tolerance"]
    entry = tolerance.get("per_output", {}).get(name, tolerance)
    atol = np.asarray(entry["atol"], np.float64)
    if "atol_axis0" in entry:
        atol = np.asarray(entry["atol_axis0"], np.float64).reshape((-1,) + (1,) * (len(shape) - 1))
    return np.full(shape, float(entry["rtol"])), np.broadcast_to(atol, shape)


def _misses(name: str, got: np.ndarray, want: np.ndarray, rtol: np.ndarray, atol: np.ndarray) -> list[str]:
    """|got - want| <= atol + rtol |want|, in float64; a NaN is a miss."""
    got, want = (a.astype(a.dtype if a.dtype.kind in "iub" else np.float64) for a in (got, want))
    with np.errstate(invalid="ignore"):
        off = np.abs(np.subtract(got, want, dtype=np.float64))
        good = (got == want) | (off <= atol + rtol * np.abs(want))
    if good.all():
        return []
    return [f"{name}: {(~good).sum()} of {good.size} elements are off, by up to {np.nanmax(np.where(good, 0, off)):.3g}"]
