"""The page of stages: complete, in the order of the years, without circles; what is wrong in one is refused in a line."""
import copy
import re

import pytest
from pages import ROOT

from diffusion_jax.build import ConfigError
from diffusion_jax.lineage import stages
from diffusion_jax.runs import pages

ELSEWHERE = {"Latent / Stable Diffusion": "latent diffusion", "Stable Diffusion 3, XL": "Stable Diffusion 3"}
"""What README's table calls otherwise."""


def entry(key, **fields):
    """A stage of a page."""
    return dict(key=key, name=key.upper(), year=2022, page="digits:tiny") | fields


def page(*entries, **sections):
    """A page of stages."""
    measure = entry("measure", page="digits_classifier:tiny", helper=True)
    return dict(
        data="digits", measure="measure", reference="measure", judge=None, seeds=1, classes=("0", "1"), prompts=(),
        budget=dict(measure="flops", amount=1e9), stages=[measure, *entries],
    ) | sections


@pytest.fixture(scope="module")
def digits():
    return stages.read(pages.read("lineage:digits"))


def test_every_system_of_the_readme_has_a_stage(digits):
    table = (ROOT / "README.md").read_text().partition("## Systems")[2].partition('"Restores"')[0]
    systems = re.findall(r"^\| (?!system|-)([^|]+) \|", table, re.MULTILINE)
    names = {stage.name for stage in digits.stages}
    assert len(systems) >= 10
    assert {ELSEWHERE.get(system, system) for system in systems} <= names


def test_the_systems_come_in_the_order_of_their_years(digits):
    years = [stage.year for stage in digits.stages if not stage.helper]
    assert years == sorted(years)
    assert [stage.key for stage in digits.stages if not stage.helper][:4] == ["dalle", "adm", "glide", "unclip"]


def test_each_stage_says_how_it_is_asked_and_what_it_trades(digits):
    for stage in digits.stages:
        assert stage.helper or stage.strength is not None, stage.key
    assert len(digits.prompts) == len(digits.classes) == 10


@pytest.mark.parametrize("name", ["lineage:digits", "lineage:tiny"])
def test_what_a_stage_needs_comes_first_and_nothing_that_measures_helps(name):
    lineage = stages.read(pages.read(name))
    ordered = [stage.key for stage in stages.in_order(lineage.stages)]
    assert sorted(ordered) == sorted(stage.key for stage in lineage.stages)
    for stage in lineage.stages:
        for role, key in stage.needs.items():
            assert role == "weak" or ordered.index(key) < ordered.index(stage.key)
            assert key not in (lineage.measure, lineage.judge)


def test_helpers_of_helpers_count_too():
    lineage = stages.read(page(
        entry("clip", helper=True), entry("prior", helper=True, needs={"first_stage": "clip"}),
        entry("unclip", needs={"first_stage": "clip", "prior": "prior"}), entry("dit"),
        entry("cads", page="", needs={"run": "dit"}),
    ))
    of = {stage.key: stages.helpers_of(stage, lineage.stages) for stage in lineage.stages}
    assert of["unclip"] == {"clip", "prior"} and of["prior"] == {"clip"} and of["cads"] == set()


def test_stages_stay_in_their_order_where_needs_allow_it():
    lineage = stages.read(page(entry("a", needs={"prior": "z"}), entry("b"), entry("z", helper=True)))
    assert [stage.key for stage in stages.in_order(lineage.stages)] == ["measure", "b", "z", "a"]


REFUSED = {
    "lacks 'seeds'": lambda p: p.pop("seeds"),
    "unknown field of a lineage 'stage'": lambda p: p.update(stage=p.pop("stages")),
    "unknown measure of a budget 'flop': did you mean 'flops'": lambda p: p["budget"].update(measure="flop"),
    "budget.amount is 1 or more": lambda p: p["budget"].update(amount=0),
    "seeds is 1": lambda p: p.update(seeds=0),
    "unknown stage 'mesure': did you mean 'measure'": lambda p: p.update(measure="mesure"),
    "a stage lacks 'year'": lambda p: p["stages"][1].pop("year"),
    "unknown field of a stage 'need': did you mean 'needs'": lambda p: p["stages"][1].update(need={}),
    "two stages are called 'dit'": lambda p: p["stages"].append(entry("dit")),
    "names its folder": lambda p: p["stages"][1].update(key="../dit"),
    "unknown ask of dit 'labels': did you mean 'label'": lambda p: p["stages"][1].update(ask="labels"),
    "unknown role in needs of dit": lambda p: p["stages"][1].update(needs={"guide": "vae"}),
    "unknown stage that dit needs 'vea': did you mean 'vae'": lambda p: p["stages"][1].update(needs={"latents": "vea"}),
    "dit needs measure, which measures it": lambda p: p["stages"][1].update(needs={"classifier": "measure"}),
    "the weak model of dit is itself": lambda p: p["stages"][1].update(needs={"weak": "other"}),
    "dit needs other as prior: that is a stage with helper=True": lambda p: p["stages"][1].update(needs={"prior": "other"}),
    "dit has a page to train, or needs {'run': ...}": lambda p: p["stages"][1].update(page=""),
    "vae is a helper, which is not sampled": lambda p: p["stages"][2].update(sample={"steps": 3}),
    "measure measures the systems": lambda p: p["stages"][0].update(helper=False),
    "unknown strength of dit 'guidence': did you mean": lambda p: p["stages"][1].update(
        strength=dict(name="guidence", values=(1, 2))),
    "that rise": lambda p: p["stages"][1].update(strength=dict(name="guidance", values=(2, 1))),
    "need each other in a circle: vae, clip": lambda p: (
        p["stages"][2].update(needs={"prior": "clip"}),
        p["stages"].append(entry("clip", helper=True, needs={"prior": "vae"}))),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_is_wrong_in_a_page_is_refused(says):
    good = page(entry("dit"), entry("vae", helper=True), entry("other"))
    stages.read(good)
    wrong = copy.deepcopy(good)
    REFUSED[says](wrong)
    with pytest.raises(ConfigError, match=re.escape(says)):
        stages.read(wrong)
