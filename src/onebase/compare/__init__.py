"""Comparing methods on the user's own data: metrics, intervals, experiment, report, recommendation."""
