"""POST /v1/completions: prompts of every form, echo, log-probabilities, streams."""

from typing import Any

import pytest
import torch

from onebase.adapters.peft_format import load_adapter
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.model.base import Base

PATH = "/v1/completions"
TEXT = "the parcel is"


def complete(server: Any, **fields: Any) -> Any:
    body = {"model": "base", "prompt": TEXT, "max_tokens": 6, "temperature": 0, **fields}
    answer = server.http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def texts(body: Any) -> list[str]:
    return [choice["text"] for choice in body["choices"]]


def test_every_form_of_a_prompt(server: Any, base: Base) -> None:
    ids = base.tokenizer(TEXT)["input_ids"]
    (expected,) = texts(complete(server))
    assert texts(complete(server, prompt=ids)) == [expected]
    other = texts(complete(server, prompt="hello"))
    assert texts(complete(server, prompt=[TEXT, "hello"])) == [expected, *other]
    hello = base.tokenizer("hello")["input_ids"]
    body = complete(server, prompt=[ids, hello])
    assert texts(body) == [expected, *other]
    assert body["usage"]["prompt_tokens"] == len(ids) + len(hello)
    assert body["object"] == "text_completion"
    assert body["model"] == "base"


def test_no_template_is_around_a_completion(server: Any, base: Base) -> None:
    ids = torch.tensor([base.tokenizer(TEXT)["input_ids"]])
    body = complete(server, max_tokens=1)
    expected = int(base.model(input_ids=ids).logits[0, -1].argmax())
    assert texts(body) == [base.tokenizer.decode([expected])]


def test_choices_of_several_prompts(server: Any) -> None:
    body = complete(server, prompt=[TEXT, "hello"], n=2, temperature=1.0, seed=3)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert texts(complete(server, n=2, temperature=1.0, seed=3)) == texts(body)[:2]


def test_sixteen_tokens_by_default(server: Any) -> None:
    body = complete(server, max_tokens=None, logit_bias={"2": -100})
    assert body["usage"]["completion_tokens"] == 16
    assert body["choices"][0]["finish_reason"] == "length"


def test_loglikelihood_of_a_prompt(server: Any, base: Base) -> None:
    """As lm-evaluation-harness asks for it, held against the model's own pass."""
    ids = base.tokenizer(TEXT + " on its way")["input_ids"]
    body = complete(server, prompt=[ids], max_tokens=0, echo=True, logprobs=1)
    (choice,) = body["choices"]
    logprobs = choice["logprobs"]
    logits = base.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(logits[at, token]) for at, token in enumerate(ids[1:])]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx(expected, abs=1e-5)
    best = [float(row.max()) for row in logits[:-1]]
    top = [max(entry.values()) for entry in logprobs["top_logprobs"][1:]]
    assert top == pytest.approx(best, abs=1e-5)
    assert choice["text"] == TEXT + " on its way"
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert len(ids) == len(logprobs["tokens"]) == len(logprobs["text_offset"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    assert body["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("task", ["support", "mood", "reply"])
def test_an_adapter_scores_too(task: str, server: Any, base: Base) -> None:
    ids = base.tokenizer(TEXT)["input_ids"]
    pack = Pack({"it": load_adapter(server.store.get(task).path, base).eval().contribution()})
    node = pack.nodes[pack.add("it", ids)]
    with torch.no_grad():
        logits = run_pack(base, pack, torch.arange(node.start, node.start + node.length))
    logprobs = logits.log_softmax(-1)
    expected = [float(logprobs[at, token]) for at, token in enumerate(ids[1:])]
    body = complete(server, model=task, max_tokens=0, echo=True, logprobs=0)
    first, *found = body["choices"][0]["logprobs"]["token_logprobs"]
    assert first is None
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_and_logprobs_go_on_into_the_answer(stream: bool, server: Any) -> None:
    body = {"echo": True, "logprobs": 2, "max_tokens": 4}
    whole = complete(server, **body)["choices"][0]
    assert whole["text"] == TEXT + texts(complete(server, max_tokens=4))[0]
    if stream:
        events = server.events(PATH, model="base", prompt=TEXT, temperature=0, **body)
        assert events[-1] == "[DONE]"
        parts = [chunk["choices"][0] for chunk in events[:-1]]
        assert "".join(part["text"] for part in parts) == whole["text"]
        assert parts[-1]["finish_reason"] == whole["finish_reason"]
        for name in ("tokens", "token_logprobs", "text_offset"):
            joined = [
                entry for part in parts if part["logprobs"] for entry in part["logprobs"][name]
            ]
            assert joined == whole["logprobs"][name]
    else:
        entries = whole["logprobs"]["top_logprobs"]
        chosen = zip(whole["logprobs"]["tokens"], whole["logprobs"]["token_logprobs"], strict=True)
        for entry, (token, logprob) in zip(entries[1:], list(chosen)[1:], strict=True):
            # The two most likely tokens, and the token itself if it is neither.
            assert entry[token] == logprob
            assert len(entry) == (2 if logprob >= sorted(entry.values())[-2] else 3)


def test_echo_alone(server: Any) -> None:
    body = complete(server, echo=True, max_tokens=0)
    assert texts(body) == [TEXT]
    assert body["choices"][0]["logprobs"] is None


def test_a_stream_of_several_prompts(server: Any) -> None:
    whole = texts(complete(server, prompt=[TEXT, "hello"]))
    events = server.events(PATH, model="base", prompt=[TEXT, "hello"], max_tokens=6, temperature=0)
    joined = ["", ""]
    for chunk in events[:-1]:
        (choice,) = chunk["choices"]
        joined[choice["index"]] += choice["text"]
    assert joined == whole


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt.0"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [300]}, "prompt.0"),
        ({"prompt": [[1], [10**12]]}, "prompt.1"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str, server: Any) -> None:
    body = {"model": "base", "prompt": TEXT, "max_tokens": 2, **fields}
    refused = server.http.post(PATH, json=body)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
