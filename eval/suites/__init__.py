"""Suites of evaluation: a YAML file each, which ``align eval RUN --suite NAME`` measures."""
