"""Budgets: equal for all systems, helpers split among those that need them; operations as mode plan counts them."""
import json
import math

import jax
import own_pictures
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.lineage import budget, stages
from diffusion_jax.planning.layouts import batch_of, work_of
from diffusion_jax.runs import page, pages
from diffusion_jax.train.state import plain, task_of

STEP = 1e9
"""Operations of a step."""
LONG = 4000
"""Steps of a system without helpers, where all steps cost the same."""


@pytest.fixture(scope="module")
def digits():
    return stages.read(pages.read("lineage:digits"))


def alike(lineage):
    """Steps of all stages that cost the same."""
    return {stage.key: lineage.budget.amount / LONG for stage in lineage.stages}


def built(lineage):
    """Plans where all steps cost the same."""
    return budget.plans_of(lineage, alike(lineage))


def systems(lineage):
    """The systems that are trained."""
    return [stage.key for stage in lineage.stages if stage.page and not stage.helper]


@pytest.mark.parametrize("measure", stages.MEASURES)
def test_all_systems_spend_the_same_within_two_percent(measure):
    lineage = stages.read(pages.read("lineage:digits", budget=measure))
    plans = budget.plans_of(lineage, alike(lineage))
    for key in systems(lineage):
        assert plans[key].spent(measure) == pytest.approx(lineage.budget.amount, rel=0.02), key


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["flops", "pictures"])
def test_all_systems_spend_the_same_as_counted(measure):
    lineage = stages.read(pages.read("lineage:digits", budget=measure))
    plans = budget.plans_of(lineage)
    spent = [plans[key].spent(measure) for key in systems(lineage)]
    assert max(spent) / min(spent) < 1.02


def test_a_shared_helper_is_split_and_no_more(digits):
    plans = budget.plans_of(digits, alike(digits))
    users = budget.users_of(digits.stages)
    assert users["clip"] == {"dalle", "unclip"} and users["prior"] == {"unclip"}
    assert not {"measure", "judge"} & set(users)
    for key, needed_by in users.items():
        shares = [plans[user].shares[key] for user in needed_by]
        assert sum(shares) == pytest.approx(plans[key].flops)


def test_what_a_system_has_left_follows_by_hand():
    """Of 100 steps' worth a helper of 20 is split in two: 90 are left."""
    measure = dict(key="measure", name="M", year=2021, page="digits_classifier:tiny", helper=True)
    clip = dict(key="clip", name="C", year=2021, page="digits_clip:tiny", helper=True, overrides={"steps": 20})
    two = [dict(key=key, name=key, year=2021, page="digits:tiny", needs={"judge": "clip"}) for key in "ab"]
    lineage = stages.read(dict(
        data="", measure="measure", reference="measure", judge=None, seeds=1, classes=(), prompts=(),
        stages=[measure, clip, *two], budget=dict(measure="flops", amount=100 * STEP),
    ))
    plans = budget.plans_of(lineage, {stage.key: STEP for stage in lineage.stages})
    assert [plans[key].steps for key in ("clip", "a", "b")] == [20, 90, 90]


def test_helpers_that_take_all_are_refused(digits):
    small = digits._replace(budget=digits.budget._replace(amount=digits.budget.amount / 10))
    with pytest.raises(ConfigError, match=r"helpers of \w+ .* raise --config.budget.amount"):
        budget.plans_of(small, alike(digits))


# Pages ----------------------------------------------------------------------------------------------------------------------


ABLATIONS = ("prediction", "blocks", "edm2", "latents", "prior", "guidance")


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in ("lineage:digits", "lineage:tiny", "lineage:flowers=pictures,latents")]
    + [("lineage", {"ablate": ablation}) for ablation in ABLATIONS],
)
def test_every_page_can_be_trained_at_its_length(name, options):
    lineage = stages.read(pages.read(name, **options))
    plans = built(lineage)
    differing = {json.dumps((plain(plans[key].config), plans[key].stage.needs)) for key in systems(lineage)}
    assert len(differing) == len(systems(lineage))
    for plan in plans.values():
        page.check(plain(plan.config))
        assert plan.config["steps"] == plan.steps
        # A tiny page has the schedule of its large one.
        assert name == "lineage:tiny" or plan.config["optim"].get("steps", plan.steps) == plan.steps
        assert plan.config["evaluate"]["num"] == 0 and not plan.config["evaluate"].get("every")
        assert plan.steps // plan.config["checkpoint"]["every"] >= min(budget.SAVES, plan.steps)


def test_a_folder_of_classes_has_a_lineage_of_its_own(tmp_path):
    folder = own_pictures.classes(tmp_path / "photos")
    lineage = stages.read(pages.read(f"lineage:folder={folder}"))
    assert lineage.classes == own_pictures.CLASSES and lineage.data == str(folder)
    for plan in built(lineage).values():
        page.check(plain(plan.config))
        shapes = jax.eval_shape(task_of(plan.config).init, jax.random.key(0), batch_of(plan.config, task_of(plan.config)))
        assert shapes and plan.config["data"]["train"]["path"] == str(folder)


def test_emoji_have_the_systems_of_texts(tmp_path):
    """All make 64x64 of the same held-out captions, and what measures is trained apart."""
    captions = dict(caption=["red heart", "grinning face", "woman, dark skin tone"], split=["val", "train", "val"],
                    skin_tone=["", "", "dark"])
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    lineage = stages.read(pages.read(f"lineage:emoji={tmp_path},runs/emoji_tae"))
    assert lineage.prompts == ("red heart",) and not lineage.classes and lineage.measure == lineage.judge
    by_key = {stage.key: stage for stage in lineage.stages}
    assert all(stage.ask == "prompt" for stage in lineage.stages if not stage.helper)
    plans = built(lineage)
    for key in systems(lineage):
        plan = plans[key]
        page.check(plain(plan.config))
        larger = by_key[key].needs.get("upsampler") or by_key[key].needs.get("dvae")
        shape = plans[larger].config["task"]["shape"] if larger else plan.config["task"]["shape"]
        assert tuple(shape) in ((64, 64, 3), (8, 8, 32)), key


def test_pictures_without_classes_have_none(tmp_path):
    with pytest.raises(ConfigError, match="a folder for each class"):
        pages.read(f"lineage:folder={own_pictures.loose(tmp_path / 'photos')}")


def test_overrides_are_of_sections_that_are_there():
    stage = stages.Stage("dit", "DiT", 2022, "digits:tiny", {"modle.width": 3}, {}, False, {}, None, "label")
    with pytest.raises(ConfigError, match="digits:tiny has no section of 'modle.width'"):
        budget.page_of(stage)
    config = budget.page_of(stage._replace(page="digits", overrides={"model.width": 64, "steps": 50}))
    assert config["model"]["width"] == 64 and config["steps"] == config["optim"]["steps"] == 50


# Operations -----------------------------------------------------------------------------------------------------------------


def test_operations_are_those_of_a_plan():
    """Mode plan counts the same step in its own way."""
    config = plain(pages.read("digits:tiny"))
    assert budget.step_flops(config) == sum(work_of(config).model_flops.values())


def test_operations_of_a_frozen_first_stage_count():
    """At least the products of the dVAE's first convolution, of every picture: 2 x 8 x 8 x kernel."""
    dalle, dvae = plain(pages.read("digits_dalle:tiny")), plain(pages.read("digits_dvae:tiny"))
    beside = budget.step_flops(dalle, dvae) - budget.step_flops(dalle)
    kernel = dvae["model"].get("kernel", 7) ** 2 * dvae["model"]["init_width"]
    assert beside >= dalle["batch"] * 2 * math.prod((8, 8)) * kernel
