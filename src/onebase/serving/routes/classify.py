"""POST /v1/classify: the probability of each label of a task. Nothing is sampled."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from onebase.data.example import Turn
from onebase.engine.classification import LabelScore, logprob, ranked
from onebase.engine.sampling import Sampling
from onebase.language import say
from onebase.serving.disconnect import unless_disconnected
from onebase.serving.errors import bad_field
from onebase.serving.fields import check_fields, ignored_header
from onebase.serving.json_body import JsonRoute
from onebase.serving.prompts import chat_prompt
from onebase.serving.sequence_group import SequenceSpec, require_complete_scores
from onebase.serving.service import Lease, Service
from onebase.serving.text_field import Text

router = APIRouter(route_class=JsonRoute)
Label = Annotated[Text, Field(min_length=1)]


class ClassifyRequest(BaseModel):
    """Texts for a task that was trained on texts and labels."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Text = Field(max_length=256, description="A task, task@version, or base.")
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)] = Field(
        description="The text or texts to classify."
    )
    labels: Annotated[list[Label], Field(max_length=1000)] | None = Field(
        None, description="The labels; those of the task by default."
    )
    user: Text | None = Field(None, description="Ignored.")


@router.post("/v1/classify")
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """The log-probability of every label for each text, the most likely label first."""
    service: Service = request.app.state.service
    headers = ignored_header(check_fields(body))
    work = _scores(service, body, request.state.log)
    return JSONResponse(await unless_disconnected(request.receive, work), headers=headers)


async def _scores(service: Service, body: ClassifyRequest, log: dict[str, Any]) -> dict[str, Any]:
    texts = [body.input] if isinstance(body.input, str) else body.input
    # The number of sequences depends on the task's labels, which are known only once it is loaded.
    async with service.lease(body.model, len(texts), log) as lease:
        labels = tuple(dict.fromkeys(body.labels or lease.task.labels))
        if not labels:
            raise bad_field(
                "labels",
                say(f"{lease.model} has no labels.", f"{lease.model} 没有标签。"),
                say(
                    "Name labels, or train the task on rows with text and label.",
                    "请指定标签，或用含有 text 和 label 的数据训练该任务。",
                ),
            )
        lease.log_text("prompt", texts)
        scores = await _label_scores(lease, texts, labels)
        fingerprint = lease.fingerprint
    data = [
        {"index": index, "label": ranking[0].label, "labels": [asdict(item) for item in ranking]}
        for index, ranking in enumerate(scores)
    ]
    single = {"labels": data[0]["labels"]} if isinstance(body.input, str) else {}
    task = {"task": lease.task.task, "version": lease.task.version}
    return {
        "object": "list",
        "model": lease.model,
        "system_fingerprint": fingerprint,
        **task,
        **single,
        "data": data,
    }


async def _label_scores(
    lease: Lease, texts: list[str], labels: tuple[str, ...]
) -> list[list[LabelScore]]:
    """The scores of each text, one text after another, so that other requests run in between."""
    template = lease.task.template
    answers = await asyncio.to_thread(lambda: [template.answer_ids(label) for label in labels])
    longest = max(map(len, answers))
    scores = []
    for index, text in enumerate(texts):
        param = f"input.{index}" if len(texts) > 1 else "input"
        prompt = await chat_prompt(lease.task, [Turn("user", text)], param)
        lease.check_length(len(prompt) + longest, param)
        specs = [
            SequenceSpec(
                (*prompt, *answer),
                Sampling(),
                score_from=len(prompt),
                score_only=True,
                streamed=False,
            )
            for answer in answers
        ]
        group = await lease.submit(specs, param)
        await group.results()
        for request in group.requests:
            require_complete_scores(request)
        scores.append(ranked(labels, [logprob(request) for request in group.requests]))
    return scores
