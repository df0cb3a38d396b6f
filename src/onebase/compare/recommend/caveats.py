"""What a reader of a recommendation has to know of the comparison behind it."""

from collections.abc import Mapping
from typing import Any

from onebase.adapters.methods import METHODS
from onebase.compare.evidence import Evidence
from onebase.compare.recommend.earlier import other_machine
from onebase.compare.recommend.grounds import candidates
from onebase.language import say
from onebase.quantity import listed, plural


def caveats(evidence: Evidence, machine: Mapping[str, Any]) -> list[str]:
    """How far the numbers reach: settings, seeds, near-duplicates, methods that were not compared, and
    whether this `machine` is the one they were measured on.
    """
    comparison, found = evidence.comparison, list(evidence.summary.notes())
    compared = candidates(evidence)
    if comparison.settings == "defaults":
        found.append(
            say(
                "Compared with their default settings; other settings may change the order.",
                "各方法均使用默认设置；换用其他设置，优劣可能不同。",
            )
        )
    single = [name for name in compared if len(evidence.methods[name].arms) == 1]
    if single and single != compared:  # the statistics say it of all
        found.append(
            say(
                f"Trained with one seed: {listed(single)}. How far seeds differ is unknown.",
                f"只用一个随机种子训练：{listed(single)}。不同种子的差异未知。",
            )
        )
    if comparison.near_duplicates:
        count = len({pair.held_out for pair in comparison.near_duplicates})
        rows = plural(count, "held-out row is", "held-out rows are")
        found.append(
            say(
                f"{rows} nearly the same as a training row, so the quality is likely too high.",
                f"{count} 行留出数据与训练数据几乎相同，测得的质量可能偏高。",
            )
        )
    if missing := [name for name in METHODS if name not in compared]:
        found.append(say(f"Not compared: {listed(missing)}.", f"未对比：{listed(missing)}。"))
    if keys := other_machine(comparison.machine, machine):
        what = listed(keys)
        found.append(
            say(
                f"Measured on another machine ({what} differ); memory and time may be others here.",
                f"在另一台机器上测得（{what} 不同）；在本机上内存和时间可能不同。",
            )
        )
    return found
