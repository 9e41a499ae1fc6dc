"""Parts of a recipe that change nothing say why."""
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Joint, Label, LowRes
from diffusion_jax.pipelines.idle import OPTIONS, of_text, reason
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.spelling import CADS, GRIDS, SAMPLERS, SCHEDULES, defaults_of
from pipelines.toy_task import CLASSES, make


def test_every_option_that_may_be_idle_is_one():
    functions = {where.partition(":")[2]: where for table in (SAMPLERS, GRIDS, SCHEDULES, {"": CADS}) for where in table.values()}
    for function, options in OPTIONS.items():
        defaults = defaults_of(functions[function])
        assert set(options) | {other for other, _ in options.values()} <= defaults.keys(), function


@pytest.mark.parametrize(("text", "table", "says"), [
    ("edm,s_min=5", SAMPLERS, "'edm,s_min=5': s_min changes nothing where s_churn is 0"),
    ("edm,s_churn=0,s_max=5", SAMPLERS, "s_max changes nothing where s_churn is 0"),
    ("euler,s_noise=1.1", SAMPLERS, "s_noise changes nothing where s_churn is 0"),
    ("dpm_solver,order=1,corrector=heun", SAMPLERS, "corrector changes nothing where order is 1"),
    ("rescale=False,psi=0.5", {"": CADS}, "psi changes nothing where rescale is False"),
    ("rescale=0,statistics=batch", {"": CADS}, "statistics changes nothing where rescale is False"),
    ("edm,s_min=0.0", SAMPLERS, ""),                                                   # a default is no demand
    ("edm,s_churn=3,s_min=5", SAMPLERS, ""),
    ("dpm_solver,corrector=heun", SAMPLERS, ""),
    ("karras,rho=5", GRIDS, ""),
    ("psi=0.5", {"": CADS}, ""),
    ("mypkg.samplers:edm,s_min=5,tau1=2,power=0", SAMPLERS, ""),                       # of a user's own, which are not known
])
def test_options_that_change_nothing_say_why(text, table, says):
    why = of_text(text, table)
    assert says in why and bool(says) == bool(why)


@pytest.mark.parametrize(("fields", "name", "swept"), [
    (dict(channels=2, guidance=3.0), "channels", "channels"),
    (dict(clip=1.0, threshold=0.9), "clip", "threshold"),
    (dict(clip=1.0, threshold=0.9), "clip", "clip"),
    (dict(phi=0.7), "phi", "guidance"),
    (dict(classifier_scale=0.0), "classifier_scale", "classifier_scale"),
])
def test_what_a_sweep_changes_may_do_nothing_at_one_of_its_values(fields, name, swept):
    recipe = Recipe(**fields)
    assert reason(recipe, name, make(), classifier=True)
    assert not reason(recipe, name, make(), classifier=True, swept=swept)


def test_an_upsampler_s_own_fields():
    assert not reason(Recipe(levels=0), "levels", make(cond=LowRes(2)))
    assert reason(Recipe(levels=0), "levels", make())


@pytest.mark.parametrize(("changes", "classifier", "says"), [
    (dict(phi=0.7), False, "phi .--phi. is of guidance, which is 1 here"),
    (dict(schedule="dynamic_cfg"), False, "schedule .--schedule. is of guidance"),
    (dict(interval="0,5"), False, "interval .--interval. is of guidance"),
    (dict(channels=3), False, "channels .--channels. is of guidance"),
    (dict(keep_parallel=0.0), False, "keep_parallel .--keep_parallel. is of guidance"),
    (dict(guidance=1.0, phi=0.7), False, "phi"),
    (dict(classifier_scale=2.0), False, "needs a --classifier"),
    (dict(augment=0.3), False, "augment .--augment. is for an upsampler that was trained with it"),
    (dict(guidance=3.0, phi=0.7, keep_parallel=0.0, channels=1, interval="0,5", schedule="dynamic_cfg"), False, ""),
    (dict(plus_plus=True, phi=0.7), False, ""),
    (dict(classifier_scale=2.0), True, ""),
    (dict(phi=0.0, schedule="constant", interval="", channels=0, keep_parallel=1.0, classifier_scale=1.0), False, ""),
    (dict(steps=7, clip=0.8, threshold=0.9, temperature=0.9, sampler="heun", cads="s=0.1"), False, ""),
    (dict(clip=1.0, threshold=0.9), False, "clip .--clip. finds nothing beyond 1 after threshold"),
    (dict(guidance=3.0, channels=2), False, "channels .--channels. 2 are all that the model has"),
    (dict(levels=0), False, "levels are those of the images that an upsampler reads"),
    (dict(classifier_scale=0.0), True, "leaves the classifier out"),
    (dict(cads="tau1=1,tau2=2"), False, "with tau1 of 1 or more it never acts"),
    (dict(cads="psi=0.5,rescale=False"), False, "psi changes nothing where rescale is False"),
    (dict(guidance=3.0, interval="0, inf"), False, "interval .--interval. 0,inf is all levels"),
    (dict(guidance=3.0, schedule="power_cosine,power=0"), False, "with power 0 it is constant"),
    (dict(guidance=3.0, schedule="dynamic_cfg,tau1=2,tau2=3"), False, "with tau1 of 1 or more it never acts"),
    (dict(sampler="edm,s_min=0.1"), False, "s_min changes nothing where s_churn is 0"),
    (dict(sampler="euler,s_noise=1.1"), False, "s_noise changes nothing where s_churn is 0"),
    (dict(sampler="dpm_solver,order=1,corrector=heun"), False, "corrector changes nothing where order is 1"),
    (dict(sampler="edm,s_churn=9,s_min=0.1,s_noise=1.1", times="karras,rho=5"), False, ""),
], ids=str)
def test_a_change_that_changes_nothing_is_refused_with_the_reason(changes, classifier, says):
    recipe, task = Recipe(**changes), make()
    if not says:
        return recipe.check_changes(changes, task, classifier)
    with pytest.raises(ConfigError, match=says) as error:
        recipe.check_changes(changes, task, classifier)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("cond", "augments"), [
    (LowRes(2), False), (LowRes(2, augment=0.5, width=4), True),
    (Joint((Label(CLASSES, 4), LowRes(2, augment=0.5, width=4))), True)])
def test_augment_is_taken_where_the_upsampler_has_a_level(cond, augments):
    if augments:
        return Recipe(augment=0.3).check_changes(["augment"], make(cond=cond))
    with pytest.raises(ConfigError, match="trained with it"):
        Recipe(augment=0.3).check_changes(["augment"], make(cond=cond))


def test_a_swept_scale_of_guidance_makes_its_fields_count():
    Recipe(phi=0.7, interval="0,5").check_changes(["phi", "interval"], make(), swept="guidance")
    with pytest.raises(ConfigError, match="guidance, which is 1"):
        Recipe(phi=0.7, interval="0,5").check_changes(["phi", "interval"], make(), swept="phi")
