"""The tokenizer of ChatGLM2 and ChatGLM3, directly on SentencePiece.

The ids of control tokens follow SentencePiece's vocabulary. In a text, control tokens are recognized
only where ChatGLM's layout has them: `[gMASK]sop` at the very beginning (`sop` and `eop` alone occur in
words such as "people"), `</s>`, `<unk>` and ChatGLM3's roles anywhere.

A turn of ChatGLM3 is its role, a line of metadata and the content; line and content are tokenized
separately. SentencePiece begins every text with a space, so a turn reads `<|user|>\\n Hello`; that
space is not part of the user's text.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, PreTrainedTokenizer

from onebase.language import say
from onebase.model.chatglm_config import Generation

PREFIX = "[gMASK]sop"
_CONTROL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_ENDS = ("</s>", "<|user|>", "<|observation|>")

# ChatGLM2 has no system turn: an instruction begins the first question. Its rounds are one text, so
# only the last answer has an end token; the others are context.
_ROUNDS = (
    PREFIX + "{% set at = namespace(round=0, asked=false, lead='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' and loop.first %}"
    "{% set at.lead = message['content'] ~ '\n' %}"
    "{% elif message['role'] == 'user' and not at.asked %}"
    "{% set at.round = at.round + 1 %}{% set at.asked = true %}"
    "{{ '[Round ' ~ at.round ~ ']\n\n问：' ~ at.lead ~ message['content'] ~ '\n\n答：' }}"
    "{% set at.lead = '' %}"
    "{% elif message['role'] == 'assistant' and at.asked %}{% set at.asked = false %}"
    "{{ message['content'] ~ ('</s>' if loop.last else '\n\n') }}"
    "{% else %}{{ raise_exception('ChatGLM2 takes a question and an answer in turns') }}{% endif %}"
    "{% endfor %}"
)
# The line after <|assistant|> is empty unless a tool is called, so it is part of the prompt. An answer
# is tokenized by itself and gets its space from SentencePiece.
_TURNS = (
    PREFIX + "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' ~ message['content'] }}"
    "{% elif message['role'] in ['system', 'user', 'observation'] %}"
    "{{ '<|' ~ message['role'] ~ '|>\n ' ~ message['content'] }}"
    "{% else %}{{ raise_exception('ChatGLM3 has no role ' ~ message['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


class ChatGLMTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """The tokenizer of a `tokenizer.model` for ChatGLM version `generation`, 2 or 3.

    `ends` are the end tokens of an answer: `</s>`, and for ChatGLM3 the next role. Raises ValueError or
    OSError for a file that is not a SentencePiece model.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012 - transformers' own form
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str | Path, *, generation: Generation, **settings: Any) -> None:
        self.vocab_file = Path(vocab_file)
        self.sentencepiece = _read(self.vocab_file)
        self._pieces = int(self.sentencepiece.get_piece_size())
        roles = _ROLES if generation == 3 else ()
        control = {token: self._pieces + at for at, token in enumerate((*_CONTROL, *roles))}
        in_text: dict[str, int] = {
            "<unk>": self.sentencepiece.unk_id(),
            "</s>": self.sentencepiece.eos_id(),
            **{role: control[role] for role in roles},
        }
        self._size = self._pieces + len(control)
        self._control = control | in_text
        self._control_of: dict[int, str] = {index: token for token, index in self._control.items()}
        self._in_text = re.compile("(" + "|".join(map(re.escape, in_text)) + ")")
        self.prefix_tokens = [control["[gMASK]"], control["sop"]]
        self.ends = [self._control[token] for token in _ENDS if token in self._control]
        defaults = {
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "eos_token": "</s>",
            "padding_side": "left",
            "chat_template": _TURNS if generation == 3 else _ROUNDS,
            "special_tokens_pattern": "prefix_suffix",
            "added_tokens_decoder": {
                index: AddedToken(token, special=True, normalized=False)
                for token, index in in_text.items()
            },
        }
        super().__init__(generation=generation, **(defaults | settings))

    @property
    def bos_token(self) -> str:
        """The beginning of every text, which is two tokens."""
        return PREFIX

    @property
    def bos_token_id(self) -> int:
        """The first token of every text."""
        return self.prefix_tokens[0]

    @property
    def vocab_size(self) -> int:
        """The number of SentencePiece's pieces and control tokens."""
        return self._size

    def __len__(self) -> int:
        return self._size

    def get_vocab(self) -> dict[str, int]:
        """The ids of all tokens; for a piece spelled like a control token, the control token's."""
        return {self._convert_id_to_token(index): index for index in range(self.vocab_size)}

    def tokenize(self, text: str, **_: Any) -> list[str]:
        """The tokens of `text` in SentencePiece's spelling."""
        return [self._convert_id_to_token(index) for index in self._ids(text)]

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copy `tokenizer.model` into a folder."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / f"{prefix}tokenizer.model"
        if target.resolve() != self.vocab_file.resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        # By ids, so that a piece spelled like a control token remains a piece.
        return super()._encode_plus(self._as_ids(text), self._as_ids(text_pair), **options)

    def _as_ids(self, text: Any) -> Any:
        return self._ids(text) or text if isinstance(text, str) else text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = []
        if text.startswith(PREFIX):
            ids += self.prefix_tokens
            text = text.removeprefix(PREFIX)
        role = False
        for part in self._in_text.split(text):
            if self._in_text.fullmatch(part):
                ids.append(self._control[part])
                role = part in _ROLES
                continue
            line, newline, content = part.partition("\n")
            if role and newline:
                ids += self.sentencepiece.encode(line + newline)
                ids += self.sentencepiece.encode(content.removeprefix(" "))
            else:
                ids += self.sentencepiece.encode(part)
        return ids

    def _decode(
        self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any
    ) -> str:
        text = ""
        run: list[int] = []
        for index in [token_ids] if isinstance(token_ids, int) else map(int, token_ids):
            if index in self._control_of:
                text += str(self.sentencepiece.decode(run))
                text += "" if skip_special_tokens else self._control_of[index]
                run = []
            elif index < self._pieces:  # the model's vocabulary is padded
                run.append(index)
        return text + str(self.sentencepiece.decode(run))

    def _convert_token_to_id(self, token: str) -> int:
        return self._control.get(token, int(self.sentencepiece.piece_to_id(token)))

    def _convert_id_to_token(self, index: int) -> str:
        if index in self._control_of:
            return self._control_of[index]
        return str(self.sentencepiece.id_to_piece(index)) if index < self._pieces else ""


def _read(file: Path) -> SentencePieceProcessor:
    if not file.is_file():
        raise FileNotFoundError(say(f"{file.name} is missing", f"缺少 {file.name}"))
    try:
        model = SentencePieceProcessor(model_file=str(file))
    except RuntimeError as error:
        raise ValueError(
            say(
                f"{file.name} is not a SentencePiece model (GLM-4 has another tokenizer: use its "
                "-hf version)",
                f"{file.name} 不是 SentencePiece 模型（GLM-4 使用另一种分词器，请改用其 -hf 版本）",
            )
        ) from error
    if model.eos_id() < 0:
        raise ValueError(say(f"{file.name} has no </s>", f"{file.name} 中没有 </s>"))
    return model
