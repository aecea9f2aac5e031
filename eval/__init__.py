"""Evaluation suites and the statistics they report with; installed as ``align.eval``."""
