"""A recommendation from what comparisons measured."""
