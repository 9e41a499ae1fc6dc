"""The stages of a lineage: what is trained in which order, and how each is sampled for comparison.

A lineage is a page of its own kind (configs/lineage.py); its sections are the fields of `Lineage`:

    config.stages = [dict(key="dit", name="DiT", year=2022, page="digits", ...), ...]

`read` makes a `Lineage` of it, and refuses one that lacks something or whose needs go in a circle.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError, number, short, unknown
from diffusion_jax.train.state import plain

ROLES = {
    "first_stage": "the frozen CLIP that it is trained on",
    "dvae": "the discrete VAE whose tokens it continues",
    "latents": "the autoencoder in whose latents it is trained",
    "classifier": "guides its sampling (--classifier)",
    "prior": "gives its decoder embeddings (--prior)",
    "upsampler": "makes its pictures larger (--upsampler)",
    "judge": "chooses among its candidates (--rerank)",
    "weak": "itself at an earlier checkpoint, to guide away from (--weak)",
    "run": "the stage whose run it samples in another way, with no training of its own",
}
"""What a stage may need another for. All but `weak` and `run` name helpers."""
OF_SYSTEMS = ("weak", "run")
MEASURES = ("flops", "pictures")
ASKS = ("label", "prompt")
STRENGTHS = ("guidance", "classifier_scale", "cads.s", "temperature", "candidates")
_KEY = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


class Strength(NamedTuple):
    """What a system trades variety for quality with.

    Attributes:
      name: "guidance", "classifier_scale", "cads.s", "temperature" or "candidates".
      values: those that the curve of quality against diversity is drawn through, rising.
    """

    name: str
    values: tuple[float, ...]


class Stage(NamedTuple):
    """A system, or a helper that systems need.

    Attributes:
      key: "glide": its folder below the workdir, and its anchor on the page.
      name: "GLIDE".
      year: of its publication.
      page: "digits_glide", as --config takes it, with ':variant' where it is one; "" for a stage
        that samples the run of another.
      overrides: what differs from the page, flat: {"model.width": 64}.
      needs: role of `ROLES` -> key of another stage: {"classifier": "guide", "judge": "clip"}.
      helper: trained because others need it, with no row of its own.
      sample: flags of mode sample, flat: {"sampler": "ddim", "steps": 25}.
      strength: its own guidance; None where it has none.
      ask: how a class is asked of it, "label" or "prompt".
    """

    key: str
    name: str
    year: int
    page: str
    overrides: Mapping[str, Any]
    needs: Mapping[str, str]
    helper: bool
    sample: Mapping[str, Any]
    strength: Strength | None
    ask: str


class Budget(NamedTuple):
    """What each system may spend on training, its share of its helpers included.

    Attributes:
      measure: "flops" as cost/ counts them, or "pictures" seen.
      amount: of one system and one seed, in that measure.
    """

    measure: str
    amount: float


class Lineage(NamedTuple):
    """The whole path.

    Attributes:
      stages: in the order in which the page shows them.
      measure: key of the helper, a classifier or a CLIP, in whose features samples are compared;
        it never guides.
      reference: key of the stage whose training pictures samples are compared with.
      judge: key of the CLIP that scores samples and never guides; None without captions.
      data: what the pictures are, "digits".
      seeds: runs of each system.
      classes: names of the classes, by label; () where the data has none.
      prompts: what systems of texts are asked, one for each class where there are classes.
      budget: of one system.
    """

    stages: tuple[Stage, ...]
    measure: str
    reference: str
    judge: str | None
    data: str
    seeds: int
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    budget: Budget


class Trained(NamedTuple):
    """What became of a stage; also a row of <workdir>/trained.json.

    Attributes:
      stage: which.
      seed: 0 and up.
      folder: of its run, <workdir>/<key> or <workdir>/<key>_seed1; that of another stage where
        this one only samples otherwise.
      steps: that its budget is.
      flops: of its own training, without its helpers.
      pictures: that it saw.
      seconds: that training took, over all attempts.
      error: one line; "" where it went well.
    """

    stage: Stage
    seed: int
    folder: str
    steps: int
    flops: float
    pictures: int
    seconds: float
    error: str


# The page -----------------------------------------------------------------------------------------

STAGE: Mapping[str, Any] = {
    "overrides": {},
    "needs": {},
    "helper": False,
    "sample": {},
    "strength": None,
    "ask": "label",
}
"""Fields of a stage that a page may leave out, as they are then."""


def read(page: Any) -> Lineage:
    """The lineage of a page.

    Args:
      page: a ConfigDict or a mapping of JSON.

    Raises:
      ConfigError: a section or field that is unknown or missing, a stage twice, a need that is no
        stage, needs in a circle, or an independent network that helps a system.
    """
    config = plain(page)
    _check_fields("lineage", config, Lineage._fields)
    stages = tuple(_stage(entry) for entry in config["stages"])
    budget = config["budget"]
    _check_fields("budget", budget, Budget._fields)
    if budget["measure"] not in MEASURES:
        raise unknown("measure of a budget", str(budget["measure"]), MEASURES)
    lineage = Lineage(
        stages=stages,
        measure=config["measure"],
        reference=config["reference"],
        judge=config["judge"],
        data=config["data"],
        seeds=int(number("seeds", config["seeds"], 1, 100, integer=True)),
        classes=tuple(config["classes"]),
        prompts=tuple(config["prompts"]),
        budget=Budget(budget["measure"], number("budget.amount", budget["amount"], 1)),
    )
    check(lineage)
    return lineage


def check(lineage: Lineage) -> None:
    """Raises ConfigError where the stages of a lineage do not go together, see `read`."""
    keys = [stage.key for stage in lineage.stages]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ConfigError(f"two stages are called {twice[0]!r}: each needs a key of its own")
    independent = [key for key in (lineage.measure, lineage.judge) if key]
    by_key = {stage.key: stage for stage in lineage.stages}
    for key in (*independent, lineage.reference):
        if key not in by_key:
            raise unknown("stage", key, keys)
    for key in independent:
        if not by_key[key].helper:
            raise ConfigError(f"{key} measures the systems: give it helper=True")
    for stage in lineage.stages:
        _check_needs(stage, by_key, independent)
    in_order(lineage.stages)


def in_order(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages so that each comes behind those that it needs, else as they are.

    Raises:
      ConfigError: needs in a circle.
    """
    ordered: list[Stage] = []
    waiting = list(stages)
    while waiting:
        done = {stage.key for stage in ordered}
        ready = next((stage for stage in waiting if needed(stage) <= done), None)
        if ready is None:
            names = ", ".join(stage.key for stage in waiting)
            raise ConfigError(f"these stages need each other in a circle: {names}")
        ordered.append(ready)
        waiting.remove(ready)
    return tuple(ordered)


def needed(stage: Stage) -> set[str]:
    """The keys of the stages that must be there before this one; a weak model is its own."""
    return set(stage.needs.values()) - {stage.key}


def helpers_of(stage: Stage, stages: Sequence[Stage]) -> set[str]:
    """The keys of all helpers that a stage needs, those of its helpers too."""
    by_key = {other.key: other for other in stages}
    helpers: set[str] = set()
    for key in needed(stage):
        other = by_key[key]
        helpers |= helpers_of(other, stages) | ({key} if other.helper else set())
    return helpers


def _check_fields(what: str, entry: Any, fields: Sequence[str], optional: Any = ()) -> None:
    """Raises ConfigError where a mapping has other keys than these fields."""
    if not isinstance(entry, Mapping):
        raise ConfigError(f"a {what} has the fields {', '.join(fields)}: got {short(entry)}")
    for key in entry:
        if key not in fields:
            raise unknown(f"field of a {what}", str(key), fields)
    missing = [field for field in fields if field not in entry and field not in optional]
    if missing:
        raise ConfigError(f"a {what} lacks {missing[0]!r}: it has {', '.join(sorted(entry))}")


def _stage(entry: Any) -> Stage:
    """A stage of its entry in the page."""
    _check_fields("stage", entry, Stage._fields, STAGE)
    stage = Stage(**{**STAGE, **entry})
    if not isinstance(stage.key, str) or not _KEY.fullmatch(stage.key):
        raise ConfigError(f"a stage's key names its folder, a-z, 0-9 and _: got {short(stage.key)}")
    if stage.ask not in ASKS:
        raise unknown(f"ask of {stage.key}", str(stage.ask), ASKS)
    return stage._replace(strength=_strength(stage.key, stage.strength))


def _strength(key: str, entry: Any) -> Strength | None:
    """The strength of a stage of its entry in the page."""
    if entry is None:
        return None
    _check_fields(f"strength of {key}", entry, Strength._fields)
    if entry["name"] not in STRENGTHS:
        raise unknown(f"strength of {key}", str(entry["name"]), STRENGTHS)
    values = tuple(number(f"a strength of {key}", value) for value in entry["values"])
    if len(values) < 2 or list(values) != sorted(set(values)):
        raise ConfigError(f"strengths of {key} are two numbers or more that rise: got {values}")
    return Strength(entry["name"], values)


def _check_needs(stage: Stage, by_key: Mapping[str, Stage], independent: Sequence[str]) -> None:
    """Raises ConfigError where a stage needs what it cannot have."""
    for role, key in stage.needs.items():
        if role not in ROLES:
            raise unknown(f"role in needs of {stage.key}", role, ROLES)
        if key not in by_key:
            raise unknown(f"stage that {stage.key} needs", key, by_key)
        if key in independent:
            raise ConfigError(f"{stage.key} needs {key}, which measures it: train another for it")
        if role == "weak" and key != stage.key:
            raise ConfigError(f"the weak model of {stage.key} is itself, earlier: got {key}")
        if by_key[key].helper == (role in OF_SYSTEMS):
            kind = "a system, no helper" if role in OF_SYSTEMS else "a stage with helper=True"
            raise ConfigError(f"{stage.key} needs {key} as {role}: that is {kind}")
    if bool(stage.page) == ("run" in stage.needs):
        raise ConfigError(f"{stage.key} has a page to train, or needs {{'run': ...}}: give one")
    if stage.helper and (stage.sample or stage.strength):
        raise ConfigError(f"{stage.key} is a helper, which is not sampled: leave sample out")
