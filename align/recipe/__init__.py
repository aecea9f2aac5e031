"""Recipes: one YAML file that says everything about a run, read strictly and without torch."""

from align.recipe.recipe import Recipe, load_recipe, packaged_recipes, recipes_folder

__all__ = ["Recipe", "load_recipe", "packaged_recipes", "recipes_folder"]
