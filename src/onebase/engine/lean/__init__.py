"""The lean pass for CPUs: compiled kernels in place of a model's modules, one call a step."""
