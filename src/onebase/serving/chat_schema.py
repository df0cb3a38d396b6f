"""A request of the chat API."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onebase.data.example import Turn
from onebase.language import say
from onebase.serving.errors import ApiError, bad_field, unsupported
from onebase.serving.sampling_fields import ResponseFormat, SamplingFields
from onebase.serving.text_field import Text


class ContentPart(BaseModel):
    """A piece of a message. Only text is read."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Text
    text: Text | None = None


class ChatMessage(BaseModel):
    """One message. The text parts of a list are joined."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[ContentPart] | None = None


class ChatRequest(SamplingFields):
    """A conversation that ends with a user's message."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer that the request asks for."""
        return self.max_completion_tokens or self.max_tokens

    def wanted_logprobs(self) -> int | None:
        """How many likely tokens to report beside each one; None: no log-probabilities.

        Raises ApiError where `top_logprobs` stands without `logprobs`.
        """
        if not self.logprobs:
            if self.top_logprobs:
                raise bad_field(
                    "top_logprobs",
                    say("top_logprobs needs logprobs: true.", "top_logprobs 需要 logprobs: true。"),
                    say("Set logprobs to true.", "请将 logprobs 设为 true。"),
                )
            return None
        return self.top_logprobs or 0


def turns_of(messages: list[ChatMessage], field: str = "messages", first: int = 0) -> list[Turn]:
    """The messages as turns. Raises ApiError for tools, images and anything else that is not text; its
    `param` counts the messages of `field` from the `first`.
    """
    return [
        Turn(_role(message, place), _text(message, place))
        for place, message in (
            (f"{field}.{at - first}", message) for at, message in enumerate(messages)
        )
    ]


def _role(message: ChatMessage, place: str) -> Literal["system", "user", "assistant"]:
    for field in ("tool_calls", "function_call", "audio"):
        if (message.model_extra or {}).get(field):
            raise unsupported(f"{place}.{field}")
    if message.role in ("tool", "function"):
        raise unsupported(f"{place}.role={message.role}")
    return "system" if message.role == "developer" else message.role  # type: ignore[return-value]


def _text(message: ChatMessage, place: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if not message.content:
        raise _empty(place)
    return "".join(_part(part, f"{place}.content.{at}") for at, part in enumerate(message.content))


def _part(part: ContentPart, place: str) -> str:
    if part.type not in ("text", "input_text", "output_text"):
        raise unsupported(f"{place}.type={part.type}")
    if part.text is None:
        raise bad_field(
            f"{place}.text",
            say("A text part has no text.", "文本片段没有 text。"),
            say("Give it a text.", "请填写 text。"),
        )
    return part.text


def _empty(place: str) -> ApiError:
    return bad_field(
        f"{place}.content",
        say("A message has no content.", "消息没有内容。"),
        say("Give it a text.", "请填写文本。"),
    )


def other_fields() -> dict[str, tuple[Any, ...]]:
    """Fields that a chat may refuse beside those that every request may."""
    return {"echo": (False,), "add_special_tokens": (False,), "suffix": ("",), "prompt": ()}
