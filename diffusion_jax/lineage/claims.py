"""What a comparison supports: statements whose difference is larger than the seeds' own.

    |a - b| > 2 sqrt(error_a^2 + error_b^2),   error = deviation / sqrt(seeds)                     (1)

Where (1) does not hold nothing is said, and of one seed nothing ever. The papers' claims are tested
by the same rule: at this scale they hold, do not hold, or stay open.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diffusion_jax.lineage.results import AS_ASKED, BETTER, Comparison, Point, Spread, System

COMPARED = ("FID", "precision", "recall", "accuracy", "CLIP score")
"""Figures about which statements are made."""
ERRORS = 2.0
"""Standard errors by which figures have to differ."""


class Claim(NamedTuple):
    """What a paper says of its system, as a figure can show it.

    Attributes:
      key: of the system's stage.
      text: one sentence.
      figure: one of `results.BETTER`.
      sign: 1 where it is to rise or to be higher, -1 for the contrary.
      against: key of the other system, at its own way of sampling; "" for no other.
      strength: of the system's curve, whose ends are compared, or with another system the last
        points of both curves; "" for no curve.
    """

    key: str
    text: str
    figure: str
    sign: int
    against: str = ""
    strength: str = ""


def _rising(key: str, strength: str, figure: str, sign: int, text: str) -> Claim:
    """What a system's own strength does to a figure."""
    return Claim(key, text, figure, sign, strength=strength)


CLAIMS = (
    _rising("dalle", "candidates", "accuracy", 1, "The best of more shows more often what was asked."),
    _rising("adm", "classifier_scale", "accuracy", 1, "A classifier's gradient makes the class surer."),
    _rising("adm", "classifier_scale", "recall", -1, "It costs variety."),
    _rising("glide", "guidance", "accuracy", 1, "More guidance follows the text more often."),
    _rising("glide", "guidance", "recall", -1, "More guidance costs variety."),
    Claim(
        "unclip", "Strong guidance leaves it more variety than GLIDE.", "recall", 1, "glide", "guidance"
    ),
    Claim("ldm", "A picture takes less time than in pixels.", "seconds per picture", -1, "glide"),
    Claim("dit", "A transformer makes better pictures than a UNet.", "FID", -1, "adm"),
    Claim("diffit", "Attention that knows the time makes better pictures.", "FID", -1, "dit"),
    Claim("diffit", "It has fewer parameters.", "parameters", -1, "dit"),
    _rising("cads", "cads.s", "recall", 1, "Noise in the condition gives variety back."),
    Claim("edm2", "Kept magnitudes make better pictures.", "FID", -1, "dit"),
    Claim("mmdit", "Straight paths make better pictures.", "FID", -1, "ldm"),
)
"""Of the papers."""


class Verdict(NamedTuple):
    """A claim, tested.

    Attributes:
      claim: which.
      outcome: "holds", "does not hold" or "open".
      evidence: the figures.
    """

    claim: Claim
    outcome: str
    evidence: str


def decided(a: Spread, b: Spread) -> int:
    """1 where a is higher than b by (1), -1 where it is lower, 0 where neither can be said."""
    if a.error is None or b.error is None:
        return 0
    difference = a.mean - b.mean
    if abs(difference) <= ERRORS * math.hypot(a.error, b.error):
        return 0
    return 1 if difference > 0 else -1


# The papers' claims -------------------------------------------------------------------------------


def verdicts(comparison: Comparison) -> tuple[Verdict, ...]:
    """All claims whose systems were measured, and whose figure there is."""
    tested = (verdict(comparison, claim) for claim in CLAIMS)
    return tuple(one for one in tested if one is not None)


def verdict(comparison: Comparison, claim: Claim) -> Verdict | None:
    """A claim, tested; None where what it is about was not measured."""
    sides = sides_of(comparison, claim)
    figure = figure_of(claim, [figures for _, figures in sides])
    if figure is None:
        return None
    (own, one), (other, two) = [(where, figures[figure]) for where, figures in sides]
    evidence = f"{figure} {one} ({own}) against {two} ({other})"
    outcome = {claim.sign: "holds", -claim.sign: "does not hold", 0: "open"}[decided(one, two)]
    return Verdict(claim, outcome, evidence)


def sides_of(comparison: Comparison, claim: Claim) -> list[tuple[str, Mapping[str, Spread]]]:
    """What a claim compares, named: the last point of a curve and the first, or two systems; fewer
    where one is missing."""
    system = comparison.system(claim.key)
    if system is None:
        return []
    if not claim.against:
        return ends(system, claim.strength)
    other = comparison.system(claim.against)
    return [] if other is None else beside(system, other, claim.strength)


def figure_of(claim: Claim, sides: Sequence[Mapping[str, Spread]]) -> str | None:
    """The figure that shows a claim, and that both sides have; of texts a CLIP says what shows what
    was asked. None where there is none."""
    names = AS_ASKED if claim.figure in AS_ASKED else (claim.figure,)
    shared = [name for name in names if all(name in figures for figures in sides)]
    return shared[0] if shared and len(sides) == 2 else None


def beside(one: System, other: System, strength: str) -> list[tuple[str, Mapping[str, Spread]]]:
    """Two systems at the last points of their curves over a strength, named, or without one as they
    sample; [] of a system without such a curve."""
    if not strength:
        return [(system.stage.name, system.figures) for system in (one, other)]
    return [
        (f"{system.stage.name}, {where}", figures)
        for system in (one, other)
        for where, figures in ends(system, strength)[:1]
    ]


def ends(system: System, name: str = "") -> list[tuple[str, Mapping[str, Spread]]]:
    """The last and the first point of a system's curve, named; [] without a curve, or where it is
    not over the strength `name`."""
    strength = system.stage.strength
    if strength is None or len(system.curve) < 2 or name not in ("", strength.name):
        return []
    points = (system.curve[-1], system.curve[0])
    return [(place(strength.name, point), point.figures) for point in points]


def place(name: str, point: Point) -> str:
    """'guidance 4', 's of CADS 0.1'."""
    words = {"cads.s": "s of CADS", "classifier_scale": "classifier scale"}
    return f"{words.get(name, name)} {point.value:g}"


# Statements ---------------------------------------------------------------------------------------


def solved(comparison: Comparison, key: str) -> tuple[str, ...]:
    """What a system measurably does better than the one before it, and its own strength improves."""
    return _statements(comparison, key, better=True)


def left_open(comparison: Comparison, key: str) -> tuple[str, ...]:
    """What a system measurably does worse than the one before it, and its own strength costs."""
    return _statements(comparison, key, better=False)


def _statements(comparison: Comparison, key: str, better: bool) -> tuple[str, ...]:
    system = comparison.system(key)
    if system is None:
        return ()
    before = previous(comparison, key)
    sentences = []
    for name in COMPARED:
        wanted = BETTER[name] if better else -BETTER[name]
        if before is not None and name in system.figures and name in before.figures:
            one, two = system.figures[name], before.figures[name]
            if decided(one, two) == wanted:
                word = "higher" if wanted > 0 else "lower"
                sentences.append(f"{name} {one}, {word} than the {two} of {before.stage.name}.")
    for name in COMPARED:
        wanted = BETTER[name] if better else -BETTER[name]
        points = [(where, figures[name]) for where, figures in ends(system) if name in figures]
        if len(points) == 2 and decided(points[0][1], points[1][1]) == wanted:
            (last, one), (first, two) = points
            word = "rises" if wanted > 0 else "falls"
            sentences.append(f"From {first} to {last} {name} {word} from {two} to {one}.")
    return tuple(sentences)


def previous(comparison: Comparison, key: str) -> System | None:
    """The system that was measured last before another one in the lineage's order."""
    measured = [
        system for system in comparison.systems if system.figures or system.stage.key == key
    ]
    pairs = itertools.pairwise(measured)
    return next((one for one, two in pairs if two.stage.key == key), None)


def caution(comparison: Comparison) -> str:
    """How far the statements of a page may be trusted, in one sentence."""
    seeds = comparison.lineage.seeds
    if seeds < 2:
        return (
            "One seed has no spread: the figures stand here, and nothing is said of their "
            "differences (--config.seeds=3 trains each system three times)."
        )
    return (
        f"Figures are means over {seeds} seeds with their standard deviation; a statement stands "
        f"here only where means differ by more than {ERRORS:g} standard errors."
    )
