"""The smallest difference between two methods that a number of held-out rows can show."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DetectableEffect:
    """`effect` is the smallest difference that is found with 80 % power at the level corrected for all
    pairs; infinite where the inputs are too few to show any difference. `rows` are the rows at hand,
    `clusters` their inputs, `rows_for_half` the rows that would show half of the effect.
    """

    effect: float
    rows: int
    clusters: int
    rows_for_half: int

    def sentence(self) -> str:
        """The statement for people, in the current language."""
        raise NotImplementedError
