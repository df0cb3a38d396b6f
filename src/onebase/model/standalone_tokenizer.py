"""A fast tokenizer without transformers, built from a saved record of its pipeline and settings.

Importing transformers takes seconds, and answering needs only the tokenizers library and a chat
template.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
# Several scripts, spaces at the ends, line breaks, characters of several tokens.
_SAMPLE = (
    "Hello there, it's 1,234.5 — café!",
    "  two\n\nlines\t ",
    "这款台灯很轻。🙂👍🏽",
    "def f(x):\n    return x",
)


class StandaloneTokenizer:
    """The methods of transformers' fast tokenizers that layouts, prompts and answers use."""

    is_fast = True

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.backend_tokenizer: Any = Tokenizer.from_str(record["pipeline"])
        self.chat_template: str | None = record["chat_template"]
        self._named: dict[str, Any] = dict(record["named"])
        for key in _NAMED:
            word = self._named.get(key)
            setattr(self, key, word)
            setattr(self, f"{key}_id", None if word is None else self._id(word))
        self._compiled: Any = None

    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        return_offsets_mapping: bool = False,
        verbose: bool = True,
    ) -> dict[str, Any]:
        """`input_ids` and, with `return_offsets_mapping`, the character range of each, `offset_mapping`."""
        encoding = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        encoded: dict[str, Any] = {"input_ids": encoding.ids}
        return encoded | ({"offset_mapping": encoding.offsets} if return_offsets_mapping else {})

    def __len__(self) -> int:
        size: int = self.backend_tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """The added tokens by id."""
        added: dict[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return added

    def decode(
        self,
        ids: int | Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """The text of ids, without clean-up of spaces."""
        ids = [ids] if isinstance(ids, int) else list(ids)
        text: str = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def convert_ids_to_tokens(self, ids: int) -> str | None:
        """The text of one token in the vocabulary; None if there is no token with that id."""
        word: str | None = self.backend_tokenizer.id_to_token(ids)
        return word

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text of a conversation. Raises jinja2's TemplateError if the template refuses it."""
        if tokenize or self.chat_template is None:
            raise ValueError("Only rendering text by a chat template is supported.")
        if self._compiled is None:
            self._compiled = _environment().from_string(self.chat_template)
        text: str = self._compiled.render(
            messages=[dict(turn) for turn in conversation],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._named,
        )
        return text

    def _id(self, word: str) -> int | None:
        id_: int | None = self.backend_tokenizer.token_to_id(word)
        return id_


def tokenizer_record(tokenizer: Any) -> dict[str, Any] | None:
    """The record of a transformers tokenizer for StandaloneTokenizer, as JSON values; None if the two
    differ on a sample.
    """
    if not tokenizer.is_fast or not isinstance(tokenizer.chat_template, str | None):
        return None
    named = {key: getattr(tokenizer, key) for key in _NAMED if getattr(tokenizer, key) is not None}
    pipeline = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    pipeline.no_padding()
    pipeline.no_truncation()
    record = {
        "pipeline": pipeline.to_str(),
        "chat_template": tokenizer.chat_template,
        "named": named,
    }
    standalone = StandaloneTokenizer(record)
    return record if all(a == b for a, b in _compared(tokenizer, standalone)) else None


def _compared(original: Any, standalone: StandaloneTokenizer) -> Iterable[tuple[Any, Any]]:
    """Pairs of results of both tokenizers on the sample."""
    yield len(original), len(standalone)
    for key in _NAMED:
        yield getattr(original, f"{key}_id"), getattr(standalone, f"{key}_id")
    for text in (*_SAMPLE, "".join((*_SAMPLE, *standalone._named.values()))):
        for special in (True, False):
            options = {"add_special_tokens": special, "return_offsets_mapping": True}
            first, second = original(text, **options), standalone(text, **options)
            yield first["input_ids"], second["input_ids"]
            yield list(map(tuple, first["offset_mapping"])), second["offset_mapping"]
        ids = second["input_ids"]
        for skip in (True, False):
            yield (
                original.decode(ids, skip_special_tokens=skip),
                standalone.decode(ids, skip_special_tokens=skip),
            )
    if original.chat_template is not None:
        turns = [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant", "user"), _SAMPLE, strict=False)
        ]
        for conversation in (
            turns[:1],
            turns,
            [{"role": "system", "content": "Be brief."}, *turns],
        ):
            for prompt in (True, False):
                yield (
                    _rendered(original, conversation, prompt),
                    _rendered(standalone, conversation, prompt),
                )


def _rendered(
    tokenizer: Any, conversation: Sequence[Mapping[str, str]], prompt: bool
) -> str | None:
    try:
        text: str = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=prompt
        )
    except TemplateError:
        return None
    return text


def _environment() -> ImmutableSandboxedEnvironment:
    """The Jinja environment of transformers' chat templates, without its own statements."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **settings)


def _raise(message: str) -> None:
    raise TemplateError(message)
