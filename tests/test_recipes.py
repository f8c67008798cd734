"""Recipes are typed settings: ranges, options, documents and what a resumed run compares follow from the fields."""

from dataclasses import fields, replace

import pytest
from conftest import ROOT

import train
from elcells.files import InputError
from elcells.settings import given_options, option_name, type_of
from elcells.training.jobs import Job
from elcells.training.recipes import RECIPES, Recipe, kept_share, recipe_table

BEYOND = {"least": lambda limit: limit - 1, "above": lambda limit: limit, "most": lambda limit: limit + 1}
BEYOND["below"] = BEYOND["above"]
LIMITS = [(field, name) for field in fields(Recipe) for name in field.metadata["limits"]]


def parsed(*options):
    return train.options().parse_args([str(option) for option in options])


@pytest.mark.parametrize("field, name", LIMITS, ids=lambda value: getattr(value, "name", value))
def test_a_value_out_of_its_range_is_refused_in_code_and_as_an_option(field, name):
    limit = field.metadata["limits"][name]
    value = type_of(field)(BEYOND[name](limit))
    with pytest.raises(InputError, match=f"^{field.name} .*: must be "):
        replace(RECIPES["fast"], **{field.name: value})
    with pytest.raises(InputError, match=f"^{option_name(field)} .*: must be "):
        given_options(parsed(f"{option_name(field)}={value}"), Recipe)


def test_numbers_that_are_not_finite_and_unknown_choices_are_refused():
    with pytest.raises(InputError, match="lr nan: must be above 0"):
        Recipe(lr=float("nan"))
    with pytest.raises(InputError, match="optimizer adam: must be sgd or adamw"):
        Recipe(optimizer="adam")


@pytest.mark.parametrize("name, value", [("epochs", 1.5), ("lr", "0.1"), ("lr", None), ("dihedral", 2)])
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} .*: must be (of type|given)"):
        Recipe(**{name: value})


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_a_recipe_is_an_option(name):
    options = ["--recipe", name, "--weights", str(ROOT / "cells.onnx")]
    job, recipe = train.new_job(parsed(*options))
    assert recipe == RECIPES[name] and job.recipe == name and job.model == "efficientnet_lite0"
    options += ["--synthetic=0.4", "--aux-loss=0.3"]  # which --line-steps needs
    for field in fields(Recipe):
        value = getattr(RECIPES["classic" if name != "classic" else "fast"], field.name)
        if isinstance(value, bool):
            given = [option_name(field) if value else option_name(field).replace("--", "--no-")]
        else:
            given = [f"{option_name(field)}={value}"]
        _, recipe = train.new_job(parsed(*options, *given))
        expected = replace(RECIPES[name], **{"synthetic": 0.4, "aux_loss": 0.3, field.name: value})
        has_lines = expected.synthetic and expected.aux_loss
        assert recipe == (expected if has_lines else replace(expected, line_steps=0))


def test_all_that_a_run_was_asked_for_comes_back_on_resume():
    job, recipe = train.new_job(parsed("--model", "resnet", "--lr", "0.002", "--limit", "60", "--no-dihedral"))
    stored = {"job": vars(job), "recipe": vars(recipe)}
    assert train.resumed_job(parsed(), "last.ckp", stored) == (job, recipe)
    changed, _ = train.resumed_job(parsed("--tta", "--precision", "fp32"), "last.ckp", stored)
    assert changed == replace(job, tta=True, precision="fp32")


@pytest.mark.parametrize("field", [f for kind in (Job, Recipe) for f in fields(kind) if f.metadata.get("fixed")])
def test_what_changes_the_course_of_a_run_cant_change_on_resume(field):
    job, recipe = train.new_job(parsed("--model", "resnet", "--limit", "60", "--folds", "3"))
    before = getattr(recipe if hasattr(recipe, field.name) else job, field.name)
    other = {"split": "module", "model": "resnet34", "recipe": "classic", "schedule": "steps", "optimizer": "sgd"}
    if field.name in other:
        options = [option_name(field), other[field.name]]
    elif isinstance(before, bool):
        options = [option_name(field).replace("--", "--no-" if before else "--")]
    elif type_of(field) is tuple:
        options = [option_name(field), "mine=3" if field.name == "weight" else "finger"]
    elif field.name in ("weights", "max_time"):
        options = [option_name(field), "9m"]
    elif type_of(field) is float:
        options = [f"{option_name(field)}={before / 2 or 0.5}"]
    else:
        options = [f"{option_name(field)}={before + 1}"]
    with pytest.raises(InputError, match=f"{option_name(field)} can't change on --resume"):
        train.resumed_job(parsed(*options), "last.ckp", {"job": vars(job), "recipe": vars(recipe)})


@pytest.mark.parametrize("stored", [[], {}, {"job": 1, "recipe": 2}, {"job": {}, "recipe": {}}])
def test_settings_that_are_none_are_refused_in_one_sentence(stored):
    with pytest.raises(InputError, match="not a resumable checkpoint"):
        train.resumed_job(parsed(), "last.ckp", stored)


def test_a_setting_of_another_type_in_a_checkpoint_is_refused_in_one_sentence():
    job, recipe = train.new_job(parsed("--model", "resnet"))
    with pytest.raises(InputError, match="not a resumable checkpoint"):
        train.resumed_job(parsed(), "last.ckp", {"job": vars(job), "recipe": vars(recipe) | {"lr": "x"}})


def test_the_table_of_recipes_is_the_documents():
    assert recipe_table() in (ROOT / "doc" / "recipes.md").read_text(encoding="utf-8")


def test_with_few_cells_more_of_the_initial_weights_is_kept():
    assert [kept_share(0.5, cells) for cells in (0, 75, 500)] == [1, 0.5, 0.5]
    assert kept_share(0.5, 25) == pytest.approx(1 - 0.5 / 3) and kept_share(0.0, 25) == 0
