"""A run's lock file in place of a recipe, so that the run can be repeated from it."""

from __future__ import annotations

from pathlib import Path

from align.recipe.yaml import Document


def unlocked(document: Document) -> Path | None:
    """Make the document of a lock file that of the recipe in it, and say where its relative paths start.

    None, and nothing happens, where the document is no lock file.
    """
    lock = document.value
    if not isinstance(lock, dict) or not isinstance(lock.get("recipe"), dict) or not isinstance(lock.get("base"), str):
        return None
    document.value = lock["recipe"]
    document.lines = {path[1:]: line for path, line in document.lines.items() if path[:1] == ("recipe",)}
    document.bare = {path[1:] for path in document.bare if path[:1] == ("recipe",)}
    return Path(lock["base"])
