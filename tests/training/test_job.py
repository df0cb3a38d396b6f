"""Jobs: their settings, and the tasks file that lists them."""

from pathlib import Path
from typing import Any

import pytest

from onebase.errors import UsageError
from onebase.training.job import Job, read_jobs
from onebase.training.options import TrainOptions
from onebase.training.train import check_jobs


def tasks_file(folder: Path, text: str) -> Path:
    file = folder / "tasks.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("method", "wrong", "nearest"),
    [
        ("lora", "rnk", "rank"),
        ("lora", "epoch", "epochs"),
        ("prompt-tuning", "virtual_token", "virtual_tokens"),
        ("p-tuning", "encodr", "encoder"),
        ("p-tuning-v2", "learning_rat", "learning_rate"),
        ("prefix-tuning", "projektion", "projection"),
    ],
)
def test_an_unknown_setting_names_the_nearest(method: str, wrong: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"{wrong}.*{nearest!r}"):
        Job("a", "a.jsonl", method, set={wrong: 1}).options()


@pytest.mark.parametrize("method", ["lora", "prompt-tuning", "p-tuning", "p-tuning-v2"])
def test_a_setting_of_another_method_is_refused(method: str) -> None:
    foreign = "virtual_tokens" if method == "lora" else "rank"
    with pytest.raises(UsageError, match=foreign) as caught:
        Job("a", "a.jsonl", method, set={foreign: 4}).options()
    assert "batch_size" in caught.value.remedy


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", 1.5, "a valid integer"),
        ("batch_size", 0, "greater than or equal to 1"),
        ("accumulation", -1, "greater than or equal to 1"),
        ("learning_rate", 0, "greater than 0"),
        ("learning_rate", "fast", "a valid number"),
        ("warmup", -1, "greater than or equal to 0"),
        ("schedule", "lineer", "'linear', 'cosine' or 'constant'"),
        ("weight_decay", -0.1, "greater than or equal to 0"),
        ("clip", 0, "greater than 0"),
        ("patience", -1, "greater than or equal to 0"),
        ("held_out", 1, "less than 1"),
        ("held_out", -0.1, "greater than or equal to 0"),
        ("max_tokens", 7, "greater than or equal to 8"),
        ("save_limit", -1, "greater than or equal to 1"),
        ("rank", 0, "greater than or equal to 1"),
        ("alpha", 0, "greater than 0"),
        ("dropout", 1, "less than 1"),
        ("target", 3, "a valid string"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: object, valid: str) -> None:
    with pytest.raises(UsageError) as caught:
        Job("a", "a.jsonl", set={key: value}).options()
    assert f"{key}={value!r}" in caught.value.message
    assert caught.value.remedy.startswith(f"Input should be {valid}")


def test_settings_are_told_apart() -> None:
    settings = {"rank": 2, "epochs": "4", "learning_rate": 0.5}
    options, own = Job("a", "a.jsonl", set=settings).options()
    assert options == TrainOptions(epochs=4, learning_rate=0.5)
    assert own == {"rank": 2}


def test_the_learning_rate_is_the_methods_own_unless_given() -> None:
    assert Job("a", "a.jsonl", "lora").rates() == {"lora": 2e-3}
    assert Job("a", "a.jsonl", "prefix-tuning").rates() == {"p-tuning-v2": 3e-2}
    assert Job("a", "a.jsonl", "p-tuning+lora").rates() == {"lora": 2e-3, "p-tuning": 1e-2}
    chosen = Job("a", "a.jsonl", "lora+ia3", set={"learning_rate": 0.25, "beta2": 0.5})
    assert chosen.rates() == {"lora": 0.25, "ia3": 0.25}
    assert chosen.beta2s() == {"lora": 0.5, "ia3": 0.5}
    assert Job("a", "a.jsonl", "prompt-tuning+lora").beta2s() == {
        "lora": 0.999,
        "prompt-tuning": 0.95,
    }


def test_the_text_to_start_from_names_the_labels() -> None:
    assert Job("a", "a.jsonl", instruction="Which mood?").init_text(["bad", "good"]) == (
        "Which mood? bad, good"
    )
    assert Job("a", "a.jsonl", instruction="Answer.").init_text() == "Answer."


@pytest.mark.parametrize(
    ("names", "named"), [(["a", "b", "a"], "'a'"), ([], "no job"), (["a", "base"], "base")]
)
def test_what_cant_be_trained_together_is_refused(names: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        check_jobs([Job(name, "a.jsonl") for name in names])


def test_one_wrong_job_among_several_is_found() -> None:
    with pytest.raises(UsageError, match="lora"):
        check_jobs([Job("a", "a.jsonl"), Job("b", "b.jsonl", "lore")])


def test_a_tasks_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    for name in ("a.jsonl", "held.jsonl"):
        (folder / "data" / name).write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # data files are beside the tasks file, not in this folder
    file = tasks_file(
        folder,
        """
base: smollm2-135m
jobs:
  - {task: 客服, data: data/a.jsonl, held_out: data/held.jsonl, instruction: Say it.}
  - task: b
    data: clinc/oos
    method: p-tuning
    columns: {input: q}
    skip_bad: true
    seed: 3
    set: {virtual_tokens: 4, epochs: 2}
""",
    )
    tasks = read_jobs(file)
    jobs = tasks.jobs
    assert tasks.base == "smollm2-135m"
    assert jobs[0] == Job(
        "客服",
        str(folder / "data/a.jsonl"),
        instruction="Say it.",
        held_out=str(folder / "data/held.jsonl"),
    )
    assert jobs[1] == Job(
        "b",
        "clinc/oos",  # no file of that name: a Hub data set
        "p-tuning",
        columns={"input": "q"},
        skip_bad=True,
        seed=3,
        set={"virtual_tokens": 4, "epochs": 2},
    )


def test_absolute_paths_stay(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text("", encoding="utf-8")
    (tmp_path / "project").mkdir()
    file = tasks_file(tmp_path / "project", f"jobs: [{{task: a, data: '{data}'}}]")
    assert read_jobs(file).jobs[0].data == str(data)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("jobs: [", "not YAML"),
        ("", "no list called jobs"),
        ("- a\n- b\n", "no list called jobs"),
        ("base: x\n", "no list called jobs"),
        ("jobs: {task: a}\n", "no list called jobs"),
        ("jobs: [{task: a, data: b}]\nbsae: x\n", "bsae.*'base'"),
        ("jobs: [{task: a, data: b, metod: lora}]\n", "metod.*'method'"),
        ("jobs: [{task: a}]\n", "no data"),
        ("jobs: [{data: a.jsonl}]\n", "no task"),
        ("jobs: [a.jsonl]\n", "'a.jsonl'"),
    ],
)
def test_a_wrong_tasks_file_is_an_error_that_names_it(
    text: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=named):
        read_jobs(tasks_file(tmp_path, text))


def test_a_tasks_file_that_cant_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml"):
        read_jobs(tmp_path / "none.yaml")
    file = tmp_path / "tasks.yaml"
    file.write_bytes(b"jobs: \xff\xfe")
    with pytest.raises(UsageError, match="not YAML"):
        read_jobs(file)


@pytest.mark.parametrize(
    "item",
    [
        {"set": "rank=4"},
        {"set": ["rank"]},
        {"columns": "text"},
        {"seed": "three"},
        {"method": 3},
        {"task": 3},
        {"data": 7},
        {"instruction": {"a": 1}},
        {"template": 5},
        {"skip_bad": "no"},
    ],
)
def test_a_value_of_the_wrong_kind_is_a_usage_error(item: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    text = yaml.safe_dump({"jobs": [{"task": "a", "data": "b.jsonl", **item}]})
    with pytest.raises(UsageError, match=next(iter(item))):
        check_jobs(read_jobs(tasks_file(tmp_path, text)).jobs)
