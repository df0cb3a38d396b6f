"""The demo's data: enough rows, no bad or shared rows, every answer in its task's format."""

import re
from pathlib import Path

import pytest

import onebase.demo
from onebase.data.formats import load_dataset
from onebase.training.job import Job, read_jobs

ROOT = Path(onebase.demo.__file__).parent
TASKS = ("summary", "social", "product", "email", "support")
FORMATS = {
    "summary": "input-output",
    "social": "prompt-completion",
    "product": "adgen",
    "email": "messages",
    "support": "question-answer",
}
FORMS = {
    ("en", "summary"): r"In short: [A-Z].+\.",
    ("en", "social"): r"✨ .+!\n.+\.\n#[A-Z]\w+ #[A-Z]\w+ #SmallBusiness",
    ("en", "product"): r"Meet the [a-z ]+\. [A-Z].+\. Made for .+\.",
    ("en", "email"): (
        r"Hi [A-Z]\w+,\n\nThank you for your message\. [A-Z].+\. We will .+\."
        r"\n\nKind regards,\nThe Paperboat team"
    ),
    ("en", "support"): r"Thanks for writing to Lumen Goods! [A-Z].+\. Next step: [A-Z].+\.",
    ("zh", "summary"): r"一句话：.+。",
    ("zh", "social"): r"✨.+！\n.+。\n#\w+ #\w+ #小店日常",
    ("zh", "product"): r"这款[^，]+，.+。适合.+。",
    ("zh", "email"): r"[\w、]+您好：\n\n感谢来信。.+。我们会.+。\n\n此致\n纸船团队",
    ("zh", "support"): r"您好，感谢联系流明家居！.+。下一步：请.+。",
}
every_task = pytest.mark.parametrize(("language", "task"), FORMS, ids=str)


def files(language: str, task: str) -> list[Path]:
    return [ROOT / language / f"{task}{part}.jsonl" for part in ("", ".heldout")]


@every_task
def test_enough_rows_and_none_bad(language: str, task: str) -> None:
    train, held_out = (load_dataset(file) for file in files(language, task))
    assert train.bad == held_out.bad == ()
    assert train.format == held_out.format == FORMATS[task]
    assert len(train.examples) >= 40
    assert len(held_out.examples) >= 10


@every_task
def test_every_input_stands_once(language: str, task: str) -> None:
    train, held_out = (
        [" ".join(example.input.split()) for example in load_dataset(file).examples]
        for file in files(language, task)
    )
    assert len({*train, *held_out}) == len(train) + len(held_out)


@every_task
def test_every_answer_stands_once(language: str, task: str) -> None:
    answers = [
        example.answer for file in files(language, task) for example in load_dataset(file).examples
    ]
    assert len(set(answers)) == len(answers)


@every_task
def test_every_answer_has_its_form(language: str, task: str) -> None:
    for file in files(language, task):
        for example in load_dataset(file).examples:
            place = f"{example.file}:{example.line}: {example.answer!r}"
            assert re.fullmatch(FORMS[language, task], example.answer), place


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_email_is_answered_to_its_sender(language: str) -> None:
    greeting = {"en": r"Hi (\w+),", "zh": r"([\w、]+)您好："}[language]
    for file in files(language, "email"):
        for example in load_dataset(file).examples:
            found = re.match(greeting, example.answer)
            assert found
            assert found[1] in example.input, example.answer


@pytest.mark.parametrize("language", ["en", "zh"])
def test_tasks_file(language: str) -> None:
    tasks = read_jobs(ROOT / language / "tasks.yaml")
    jobs = tasks.jobs
    assert tasks.base == "smollm2-135m"
    assert [job.task for job in jobs] == list(TASKS)
    assert len({job.method for job in jobs}) >= 3
    for job in jobs:
        assert [Path(job.data), Path(job.held_out or "")] == files(language, job.task)
        assert Path(job.data).is_file()
        assert Path(job.held_out or "").is_file()
        assert job.instruction
        job.options()


def test_both_languages_train_alike() -> None:
    def plain(job: Job) -> tuple[object, ...]:
        return job.task, job.method, dict(job.set), Path(job.data).name

    english, chinese = (read_jobs(ROOT / name / "tasks.yaml").jobs for name in ("en", "zh"))
    assert [plain(job) for job in english] == [plain(job) for job in chinese]
