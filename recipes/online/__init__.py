"""Recipes that sample from the policy, and a rule that judges without reading the question."""
