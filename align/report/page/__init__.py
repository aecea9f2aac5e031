"""The report of a run, or of several: one page, and one picture of it. Imports no torch."""
