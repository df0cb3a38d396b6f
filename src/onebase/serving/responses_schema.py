"""The request schema of the responses API, for plain text."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onebase.serving.chat_schema import ChatMessage, ContentPart
from onebase.serving.errors import unsupported
from onebase.serving.sampling_fields import ResponseFormat, SamplingFields
from onebase.serving.text_field import Text


class InputItem(BaseModel):
    """One message of the input. Items of other types are refused."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Text = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | list[ContentPart] | None = None


class TextFormat(BaseModel):
    """The format of the answer. Here a schema's fields are beside the type."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Text | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: Text | None = None


class TextOptions(BaseModel):
    """Options of the answer's text."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: TextFormat | None = None


class ResponsesRequest(SamplingFields):
    """A text or messages to answer."""

    input: Text | list[InputItem] = Field(description="A text, or messages.")
    instructions: Text | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(None, ge=1, description="The most tokens to generate.")
    text: TextOptions | None = None
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Above 0, report log-probabilities, and this many most likely tokens.",
    )
    store: bool | None = Field(None, description="Ignored: nothing is stored.")

    def messages(self) -> list[ChatMessage]:
        """The input as chat messages. Raises ApiError for an item that is not a message."""
        system = [ChatMessage(role="system", content=self.instructions)]
        instructions = system if self.instructions else []
        if isinstance(self.input, str):
            return [*instructions, ChatMessage(role="user", content=self.input)]
        for index, item in enumerate(self.input):
            if item.type != "message" or item.role is None:
                raise unsupported(f"input.{index}.type={item.type}")
        messages = [
            ChatMessage.model_validate({"role": item.role, "content": item.content})
            for item in self.input
        ]
        return [*instructions, *messages]

    def response_format(self) -> ResponseFormat | None:
        """The answer's format as in the chat API. Raises ApiError for unsupported options."""
        if self.text is None:
            return None
        for name, value in (self.text.model_extra or {}).items():
            if value not in (None, "medium"):
                raise unsupported(f"text.{name}")
        given = self.text.format
        if given is None:
            return None
        for name, value in (given.model_extra or {}).items():
            if value is not None:
                raise unsupported(f"text.format.{name}")
        schema = {"name": given.name, "schema": given.json_schema, "strict": given.strict}
        return ResponseFormat(
            type=given.type, json_schema=schema if given.type == "json_schema" else None
        )


# Unsupported fields, besides those of all requests, with the values that have no effect.
OTHER_FIELDS: dict[str, tuple[Any, ...]] = {
    "prompt": (),
    "messages": ([],),
    "max_tokens": (),
    "max_completion_tokens": (),
    "response_format": ({"type": "text"},),
    "echo": (False,),
}
