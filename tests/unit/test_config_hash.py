"""The hash of a recipe: what it is, not where it runs."""

from pathlib import Path

import pytest

from launch.plan import config_hash, make_plan
from tests.recipe import Recipe

CACHE = Path("/cache")


def test_the_hash_of_a_recipe_does_not_depend_on_the_run_folder(recipe: Recipe) -> None:
    elsewhere = config_hash(recipe.config("run.folder=elsewhere"), cache_folder=CACHE)
    assert elsewhere == config_hash(recipe.config(), cache_folder=CACHE)


def test_the_hash_of_a_recipe_does_not_depend_on_where_the_cache_is(recipe: Recipe) -> None:
    hashes = {
        config_hash(recipe.config(f"model.path={cache}/demo/model"), cache_folder=Path(cache))
        for cache in ("/home/a/.cache/retain", "/scratch/b")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "change", ["run.seed=1", "training.learning_rate=2e-3", "data.tasks.ner.weight=2", "layout.strategy=ddp"]
)
def test_the_hash_of_a_recipe_changes_with_everything_else(recipe: Recipe, change: str) -> None:
    changed = config_hash(recipe.config(change), cache_folder=CACHE)
    assert changed != config_hash(recipe.config(), cache_folder=CACHE)


def test_a_plan_names_the_hash_of_its_configuration(recipe: Recipe) -> None:
    config = recipe.config()
    machine = recipe.machine()
    assert make_plan(config, machine=machine).config_sha256 == config_hash(config, cache_folder=machine.cache_folder)
