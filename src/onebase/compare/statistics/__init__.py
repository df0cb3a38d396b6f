"""Intervals and paired tests that hold for few rows, and the verdict that rests on them."""
