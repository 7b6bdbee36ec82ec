"""Measurements: not run by the test command; they write RESULTS.md."""
