"""Recipes that sample from the policy, and the rule by which the small ones judge."""
