"""How to make a comparison again."""

from dataclasses import replace

import yaml

from onebase.compare.report.document import Facts, Listing, Table
from onebase.compare.report.sections.reproduction import command, reproduction_section


def blocks(evidence, kind) -> list:
    return [block for block in reproduction_section(evidence).blocks if isinstance(block, kind)]


def test_a_command_that_was_kept_is_shown_as_it_was(comparison) -> None:
    kept = replace(comparison, config={"command": "onebase compare -c mine.yaml"})
    assert command(kept) == "onebase compare -c mine.yaml"


def test_the_configuration_is_yaml(evidence) -> None:
    config = {"command": "工单", "seeds": (1, 2), "set": {"rank": 8, "rate": 1e-3, "none": None}}
    found = replace(evidence, comparison=replace(evidence.comparison, config=config))
    listing = blocks(found, Listing)[1]
    assert "工单" in listing.text
    assert yaml.safe_load(listing.text) == config | {"seeds": [1, 2]}


def test_where_the_time_went(evidence) -> None:
    section = reproduction_section(evidence)
    assert section.lead.startswith("The comparison took 24 min (45 min of CPU time)")
    time = blocks(evidence, Table)[0]
    assert time.rows[1].cells == ("training all methods together", "10 min", "42 %")
    assert time.rows[4].cells == ("rest", "25 s", "1.7 %")
    assert len(time.rows) == 5  # the trainings alone were reused: they took no time now


def test_a_training_alone_that_was_not_reused_has_its_time(evidence) -> None:
    arms = tuple(replace(arm, reused=False) for arm in evidence.comparison.arms)
    found = replace(evidence, comparison=replace(evidence.comparison, arms=arms))
    time = blocks(found, Table)[0]
    assert ("lora alone, seed 1", "205 s", "–") in [row.cells for row in time.rows]


def test_versions_machine_and_rows(evidence) -> None:
    facts = dict(blocks(evidence, Facts)[0].items)
    assert facts["versions"] == "onebase 0.1.0, torch 2.13.0"
    assert facts["processor"] == "2 cores"
    assert facts["Rows"] == "150 for training, 20 for validation, 60 held out"
    assert facts["Reused"] == "7 of 23 results from earlier runs on the same rows"


def test_settings_and_runs_of_every_method(evidence) -> None:
    table = blocks(evidence, Table)[1]
    lora = next(row.cells for row in table.rows if row.cells[0] == "lora")
    assert lora[1:3] == ("1, 2, 3", "learning_rate=0.0002, epochs=3")
    assert lora[3] == "20261127-090000-cd34 (reused), 20261128-110000-ab12"
