"""Estimates of the memory, time and disk that a training takes, from a dry run of a few steps."""
