"""Recipes that ship with align, by folder; `align list recipes` names them."""
