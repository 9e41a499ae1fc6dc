"""Parts of a recipe that change nothing say why; test_recipe.py has the table of fields."""
import pytest

from diffusion_jax.models.cond import LowRes
from diffusion_jax.pipelines.idle import OPTIONS, of_text, reason
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.spelling import CADS, GRIDS, SAMPLERS, SCHEDULES, defaults_of
from pipelines.toy_task import make


def test_every_option_that_may_be_idle_is_one():
    functions = {where.partition(":")[2]: where for table in (SAMPLERS, GRIDS, SCHEDULES, {"": CADS}) for where in table.values()}
    for function, options in OPTIONS.items():
        known = defaults_of(functions[function])
        assert set(options) | {other for other, _ in options.values()} <= known.keys(), function


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
