"""The sampling options of a command as a Sampling."""

from dataclasses import asdict
from typing import Any

from onebase.adapters.methods import parse_options
from onebase.cli.options import SamplingFlags
from onebase.engine.sampling import Sampling


def sampling_of(flags: SamplingFlags, **more: Any) -> Sampling:
    """The sampling for the flags and the command's own options. Raises UsageError."""
    return parse_options(Sampling, {**asdict(flags), **more})
