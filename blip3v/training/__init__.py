"""Training: recipes with the paper's stages, one loop for all model sizes, checkpoints that resume bit for bit."""

from __future__ import annotations

from blip3v.training.recipe import Recipe, Stage, load_recipe, recipe_names

__all__ = ["Recipe", "Stage", "load_recipe", "recipe_names"]
