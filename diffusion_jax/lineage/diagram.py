"""Which network feeds which: a system's parts as boxes and arrows, from the pages of its stages.

    left      what is asked, and what reads it
    middle    noise, the network, the decoder of its first stage, the picture
    right     what acts from beside: a classifier or a weaker self that guides, a judge that chooses

Rows go down. The network stands in the row below the last reader.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffusion_jax.lineage.stages import Stage
from diffusion_jax.runs.summary import OPTIONS

LEFT, MIDDLE, RIGHT = 0, 1, 2
WIDTH, HEIGHT = 112, 50
"""Of a box, in the units of the drawing."""
ACROSS, DOWN = 122, 72
"""Between the corners of neighbouring boxes."""
LETTERS = 22
"""Of a line in a box."""


class Box(NamedTuple):
    """A part.

    Attributes:
      name: "UNet".
      details: up to two lines below it.
      row, column: where.
      kind: "input", "network", "helper" or "picture", for its colour.
    """

    name: str
    details: tuple[str, ...]
    row: int
    column: int
    kind: str

    @property
    def x(self) -> int:
        """Of its left edge."""
        return self.column * ACROSS + 2

    @property
    def y(self) -> int:
        """Of its upper edge."""
        return self.row * DOWN + 2


class Arrow(NamedTuple):
    """What one part gives another.

    Attributes:
      start, end: the parts.
      text: what it is; "" where that is plain.
    """

    start: Box
    end: Box
    text: str = ""

    @property
    def path(self) -> str:
        """Of an SVG: straight within a row or a column, else down and then across."""
        start, end = self.start, self.end
        middle = start.x + WIDTH // 2
        across = end.y + HEIGHT // 2
        if start.column == end.column:
            return f"M{middle} {start.y + HEIGHT} V{end.y - 4}"
        edge = end.x - 4 if start.column < end.column else end.x + WIDTH + 4
        if start.row == end.row:
            side = start.x + WIDTH if start.column < end.column else start.x
            return f"M{side} {across} H{edge}"
        return f"M{middle} {start.y + HEIGHT} V{across} H{edge}"

    @property
    def at(self) -> tuple[int, int]:
        """Where its text stands."""
        if self.start.column == self.end.column:
            return self.start.x + WIDTH // 2 + 4, self.end.y - 8
        return min(self.start.x, self.end.x) + WIDTH // 2, self.end.y + HEIGHT // 2 - 5


@dataclass(frozen=True)
class Diagram:
    """A system's parts.

    Attributes:
      boxes, arrows: as above.
    """

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]

    @property
    def view(self) -> tuple[int, int, int, int]:
        """x, y, width and height of what is drawn."""
        left = min(box.x for box in self.boxes) - 2
        right = max(box.x for box in self.boxes) + WIDTH + 2
        return left, 0, right - left, max(box.y for box in self.boxes) + HEIGHT + 2


def diagram(
    stage: Stage, stages: Mapping[str, Stage], pages: Mapping[str, Mapping[str, Any]]
) -> Diagram | None:
    """The parts of a system.

    Args:
      stage: which.
      stages: all of them by key.
      pages: theirs by key.

    Returns:
      None where its page did not read.
    """
    source = stages.get(stage.needs.get("run", ""), stage)
    page = pages.get(source.key)
    if not page:
        return None
    needs = {
        role: stages[key] for role, key in {**source.needs, **stage.needs}.items() if key in stages
    }
    readers = list(_readers(stage, page, needs, pages))
    row = len(readers) + 1
    network = Box(_name(page), _details(page, stage), row, MIDDLE, "network")
    condition = Box(f"a {'class' if stage.ask == 'label' else 'caption'}", (), 0, LEFT, "input")
    if "classifier" in needs and not readers:
        # The network knows no class: only its guide does.
        condition = condition._replace(row=row - 1, column=RIGHT)
        boxes, arrows = [network, condition], []
    else:
        boxes = [condition, *(box._replace(row=i) for i, box in enumerate(readers, 1)), network]
        arrows = [Arrow(one, two) for one, two in itertools.pairwise(boxes)]
    if "dvae" not in needs:
        noise = Box("noise", (_shape(page),), row - 1, MIDDLE, "input")
        boxes = [*boxes, noise]
        arrows = [*arrows, Arrow(noise, network)]
    for box, more in _beside(stage, needs, pages, network, condition):
        boxes = [*boxes, box]
        arrows = [*arrows, *more]
    boxes, arrows = _down(stage, needs, pages, network, boxes, arrows)
    return Diagram(tuple(boxes), tuple(arrows))


def _readers(
    stage: Stage, page: Mapping[str, Any], needs: Mapping[str, Stage], pages: Mapping[str, Any]
) -> Iterator[Box]:
    """What reads the class or the caption, on its way to the network; the caller says in which rows."""
    prior = needs.get("prior")
    if prior is not None:
        if "first_stage" in needs:
            clip = needs["first_stage"]
            yield Box(clip.name, ("its tower of texts",), 0, LEFT, "helper")
        yield Box(prior.name, _details(pages.get(prior.key, {})), 0, LEFT, "helper")
    for cond in _conds(page.get("task", {}).get("cond", {})):
        yield Box(cond, ("conditions the network",), 0, LEFT, "network")
    if "cads" in stage.sample:
        yield Box("CADS", (f"noise, {stage.sample['cads']}",), 0, LEFT, "helper")


def _conds(cond: Mapping[str, Any]) -> Iterator[str]:
    """The conditioners of a page, those of several parts each; none of a model that reads nothing."""
    name = _symbol(cond.get("name", ""))
    if cond.get("parts"):
        for part in cond["parts"]:
            yield from _conds(part)
    elif name and name != "Nothing":
        yield name


def _beside(
    stage: Stage, needs: Mapping[str, Stage], pages: Mapping[str, Any], network: Box, condition: Box
) -> Iterator[tuple[Box, list[Arrow]]]:
    """What acts on the network from beside."""
    if "classifier" in needs:
        guide = needs["classifier"]
        details = _details(pages.get(guide.key, {}))
        box = Box(guide.name, details, network.row, RIGHT, "helper")
        arrows = [Arrow(box, network)]
        if condition.column == RIGHT:
            arrows.append(Arrow(condition, box))
        yield box, arrows
    if "weak" in needs:
        step = stage.sample.get("weak_step")
        details = ("guides away from it",) if step is None else (f"at step {step}", "guides away from it")
        box = Box("its weaker self", details, network.row, RIGHT, "helper")
        yield box, [Arrow(box, network)]


def _down(
    stage: Stage,
    needs: Mapping[str, Stage],
    pages: Mapping[str, Any],
    network: Box,
    boxes: list[Box],
    arrows: list[Arrow],
) -> tuple[list[Box], list[Arrow]]:
    """What follows the network: the decoder of a first stage, an upsampler, the picture, a judge."""
    last = network
    for role, text, part in (
        ("dvae", "tokens", ("its decoder",)),
        ("latents", "latents", ("its decoder",)),
        ("upsampler", "small pictures", ()),
    ):
        if role in needs:
            after = needs[role]
            details = (*part, *_details(pages.get(after.key, {}))[:1])
            box = Box(after.name, details, last.row + 1, MIDDLE, "helper")
            arrows = [*arrows, Arrow(last, box, text)]
            boxes = [*boxes, box]
            last = box
    picture = Box("a picture", (), last.row + 1, MIDDLE, "picture")
    boxes, arrows = [*boxes, picture], [*arrows, Arrow(last, picture)]
    if "judge" in needs:
        many = stage.sample.get("candidates")
        details = ("chooses the best", *([f"of {many}"] if many else []))
        judge = Box(needs["judge"].name, details, picture.row, RIGHT, "helper")
        boxes, arrows = [*boxes, judge], [*arrows, Arrow(judge, picture)]
    return boxes, arrows


# Words --------------------------------------------------------------------------------------------


def _symbol(name: str) -> str:
    """'diffusion_jax.models.dit:DiT' -> 'DiT'."""
    return name.rpartition(":")[2]


def _name(page: Mapping[str, Any]) -> str:
    return _symbol(page.get("model", page.get("task", {})).get("name", ""))


def _shape(page: Mapping[str, Any]) -> str:
    return "x".join(str(side) for side in page.get("task", {}).get("shape", ()))


def _details(page: Mapping[str, Any], stage: Stage | None = None) -> tuple[str, ...]:
    """Sizes of a page's network and, of a stage, how it samples."""
    spec = page.get("model", {})
    sizes = [f"{key} {_spelt(spec[key])}" for key in OPTIONS if spec.get(key)]
    lines = [", ".join(sizes[:2])]
    if stage is not None:
        lines.append(_sampling(page, stage))
    return tuple(_short(line) for line in lines if line)


def _sampling(page: Mapping[str, Any], stage: Stage) -> str:
    """'eps, 25 x ddim'; of tokens 'one token at a time'."""
    recipe = {**page.get("sample", {}), **stage.sample}
    scale = _symbol(page.get("task", {}).get("scale", {}).get("name", ""))
    if not scale:
        return "one token at a time"
    return f"{scale}, {recipe.get('steps', 50)} x {str(recipe.get('sampler', 'ddim')).partition(',')[0]}"


def _spelt(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _short(line: str) -> str:
    return line if len(line) <= LETTERS else f"{line[: LETTERS - 1]}…"
