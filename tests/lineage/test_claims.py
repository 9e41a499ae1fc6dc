"""Statements stand only where the spread supports them; the texts are those of the documentation."""
import math

import pytest
from made import LINEAGE, comparison, system
from pages import ROOT

from diffusion_jax.lineage import claims
from diffusion_jax.lineage.ideas import IDEAS
from diffusion_jax.lineage.results import Comparison, Point, Spread, spread
from diffusion_jax.lineage.stages import Strength


@pytest.mark.parametrize(("other", "sign"), [
    ((3.0, 4.0, 5.0), 1),                                   # 2 apart, 2 sqrt(1/3 + 1/3) = 1.63 are needed
    ((2.5, 3.5, 4.5), 0),
    ((-1.0, 0.0, 1.0), -1),
    ((2.0,), 0),
])
def test_means_differ_by_more_than_two_standard_errors(other, sign):
    assert claims.decided(Spread(other), Spread((1.0, 2.0, 3.0))) == sign


def test_a_spread_is_that_of_its_seeds():
    three = Spread((1.0, 2.0, 3.0))
    assert three.mean == 2 and three.deviation == 1 and three.error == pytest.approx(1 / math.sqrt(3))
    assert str(three) == "2.0 ± 1.0" and str(Spread((0.123456,))) == "0.1235" and str(Spread((4e12, 4e12))) == "4.00e12"
    assert str(Spread((30954.0,))) == "30,954"
    assert str(Spread((0.5, 0.52))) == "0.510 ± 0.014"
    assert Spread((1.0,)).deviation is None and Spread((1.0,)).error is None


def test_figures_are_those_of_all_seeds():
    assert spread([{"FID": 1.0, "recall": 0.5}, {"FID": 2.0}]) == {"FID": Spread((1.0, 2.0))} and spread([]) == {}


def test_a_system_is_compared_with_the_one_measured_before_it_and_with_itself():
    made = comparison()
    solved = claims.solved(made, "dit")
    assert "FID 3.000 ± 0.010, lower than the 5.000 ± 0.010 of ADM." in solved
    assert not [sentence for sentence in solved if sentence.startswith("precision")]           # 0.8 both
    assert claims.solved(made, "adm") == ("From classifier scale 0 to classifier scale 4 accuracy rises from 0.500 ± 0.010 "
                                          "to 0.900 ± 0.010.",)
    assert claims.left_open(made, "adm") == tuple(
        f"From classifier scale 0 to classifier scale 4 {change}." for change in
        ("FID rises from 5.000 ± 0.010 to 6.000 ± 0.010", "recall falls from 0.700 ± 0.010 to 0.500 ± 0.010"))
    assert claims.solved(made, "dalle") == () == claims.left_open(made, "missing")


def test_of_one_seed_nothing_is_said():
    made = comparison(seeds=1)
    assert not any(claims.solved(made, key) + claims.left_open(made, key) for key in ("adm", "dit", "cads"))
    assert {verdict.outcome for verdict in claims.verdicts(made)} == {"open"}
    assert "One seed" in claims.caution(made)


def test_claims_hold_or_not_or_stay_open():
    adm = system("adm", FID=5.0, recall=0.6, accuracy=0.7,
                 ends=[dict(recall=0.5, accuracy=0.9), dict(recall=0.5, accuracy=0.6)])
    dit = system("dit", FID=3.0)
    outcomes = {(one.claim.key, one.claim.figure): one.outcome
                for one in claims.verdicts(Comparison(LINEAGE, (adm, dit), {}, 300, {}))}
    assert outcomes == {("adm", "accuracy"): "does not hold", ("adm", "recall"): "open", ("dit", "FID"): "holds"}


def test_of_texts_a_clip_says_what_was_asked_for():
    dalle = system("dalle", accuracy=0.5, ends=[dict(accuracy=0.5), dict(accuracy=0.9)])
    of_texts = dalle._replace(curve=tuple(
        Point(point.value, {"own caption first of 10": point.figures["accuracy"]}) for point in dalle.curve))
    (verdict,) = claims.verdicts(Comparison(LINEAGE, (of_texts,), {}, 300, {}))
    assert verdict.outcome == "holds" and verdict.evidence.startswith("own caption first of 10 0.900")
    mixed = dalle._replace(curve=(dalle.curve[0], of_texts.curve[1]))
    assert claims.verdicts(Comparison(LINEAGE, (mixed,), {}, 300, {})) == ()


def test_a_claim_is_of_one_kind_of_strength():
    dalle = system("dalle", accuracy=0.5, ends=[dict(accuracy=0.5), dict(accuracy=0.9)])
    assert [one.outcome for one in claims.verdicts(Comparison(LINEAGE, (dalle,), {}, 300, {}))] == ["holds"]
    other = dalle._replace(stage=dalle.stage._replace(strength=Strength("temperature", (0.5, 1))))
    assert claims.verdicts(Comparison(LINEAGE, (other,), {}, 300, {})) == ()


def test_strongest_guidance_is_compared_at_the_ends_of_both_curves():
    unclip = system("unclip", recall=0.1, ends=[dict(recall=0.9), dict(recall=0.8)])
    glide = unclip._replace(stage=unclip.stage._replace(key="glide", name="GLIDE"),
                            curve=system("unclip", ends=[dict(recall=0.9), dict(recall=0.3)]).curve)
    made = Comparison(LINEAGE, (glide, unclip), {}, 300, {})
    (verdict,) = [one for one in claims.verdicts(made) if one.claim.against and one.claim.strength]
    assert verdict.outcome == "holds"
    assert verdict.evidence == "recall 0.800 ± 0.010 (unCLIP, guidance 4) against 0.300 ± 0.010 (GLIDE, guidance 4)"


def test_the_documentation_says_the_same():
    text = (ROOT / "docs" / "lineage.md").read_text()
    flat = " ".join(text.split())
    for key, idea in IDEAS.items():
        for part in (idea.title, idea.idea, idea.solved, idea.left_open, idea.paper):
            assert part in flat, (key, part)
        for number, equation in enumerate(idea.equations, idea.first):
            (line,) = [line for line in text.splitlines() if line.startswith(f"    {equation} ")]
            assert f"({number})" in line
