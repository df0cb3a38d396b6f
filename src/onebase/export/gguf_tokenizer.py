"""Writing a tokenizer into a GGUF header, so that llama.cpp tokenizes a text the same way.

llama.cpp has two relevant types. Byte-level BPE (`gpt2`) uses the merges and the name of a compiled-in
pre-tokenizer. SentencePiece's BPE (`llama`) uses a score for each token instead of merges: of all
adjacent pairs that form a token it merges the one with the best score.
"""

import json
from typing import Any, NoReturn

from gguf import GGUFWriter, TokenType

from onebase.errors import OnebaseError, UsageError
from onebase.export.eos import AnswerEnds
from onebase.language import say
from onebase.model.base import Base

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark for a space
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# llama.cpp's names by the regular expression (or a description of it), and by whether a word that is
# itself a token is not merged (`ignore_merges`).
_PRE_TOKENIZERS = {
    ("byte-level", False): "gpt-2",
    ("digits, byte-level", False): "smollm",
    (_QWEN2, False): "qwen2",
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",
}


def write_tokenizer(writer: GGUFWriter, base: Base, ends: AnswerEnds) -> list[str]:
    """Write the tokenizer and the end tokens into the header; returns notes for the user.

    Raises UsageError or OnebaseError for a tokenizer that llama.cpp does not support.
    """
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    if backend is None:
        _refuse(base, type(base.tokenizer).__name__)
    content = json.loads(backend.to_str())
    kind = content["model"]["type"]
    if kind != "BPE":
        _refuse(base, kind)
    tokens, types = _vocabulary(base, content)
    if content["model"]["byte_fallback"]:
        notes = _write_sentencepiece(writer, base, content, tokens)
    else:
        notes = _write_byte_level(writer, base, content)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _write_special(writer, base)
    return notes + _write_ends(writer, base, ends, types)


def _refuse(base: Base, reason: str) -> NoReturn:
    raise UsageError(
        say(
            f"llama.cpp does not support the tokenizer of {base.name}: {reason}.",
            f"llama.cpp 不支持 {base.name} 的分词器：{reason}。",
        ),
        say("Use --to merged.", "请使用 --to merged。"),
    )


def _vocabulary(base: Base, content: dict[str, Any]) -> tuple[list[str], list[int]]:
    """All tokens by id, up to the size of the embedding, and the type of each."""
    size = base.shape.vocabulary
    by_id: dict[int, tuple[str, int]] = {}
    byte_fallback = content["model"]["byte_fallback"]
    for token, index in content["model"]["vocab"].items():
        is_byte = byte_fallback and len(token) == 6 and token.startswith("<0x") and token[-1] == ">"
        by_id[index] = (token, TokenType.BYTE if is_byte else TokenType.NORMAL)
    for added in content["added_tokens"]:
        by_id[added["id"]] = (added["content"], _kind(added))
    if max(by_id) >= size:
        raise OnebaseError(
            say(
                f"The tokenizer of {base.name} has a token {max(by_id)}, but its embedding only {size} "
                "rows.",
                f"{base.name} 的分词器含有词元 {max(by_id)}，而嵌入只有 {size} 行。",
            ),
            say("Check that both are of the same model.", "请检查二者是否属于同一模型。"),
        )
    # Unused rows, as in embeddings padded to a round size.
    rows = [by_id.get(index, (f"[PAD{index}]", TokenType.UNUSED)) for index in range(size)]
    return [token for token, _ in rows], [int(kind) for _, kind in rows]


def _kind(added: dict[str, Any]) -> TokenType:
    """The type of an added token. A run of spaces is a normal token, merged from single ones, because
    llama.cpp would print a user-defined one literally.
    """
    if added["special"]:
        return TokenType.CONTROL
    return TokenType.NORMAL if set(added["content"]) == {_SPACE} else TokenType.USER_DEFINED


def _write_byte_level(writer: GGUFWriter, base: Base, content: dict[str, Any]) -> list[str]:
    normalizer = content["normalizer"]
    if normalizer is not None and normalizer != {"type": "NFC"}:
        _refuse(base, f"normalizer {normalizer['type']}")
    split = _split(content["pre_tokenizer"])
    name = _PRE_TOKENIZERS.get((split, bool(content["model"]["ignore_merges"])))
    if name is None:
        _refuse(base, f"pre-tokenizer {split}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    merges = content["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    return []


def _split(layout: dict[str, Any] | None) -> str:
    """How text is split before merging: the first part of a key of _PRE_TOKENIZERS, or a description."""
    parts = [layout or {}]
    if layout is not None and layout["type"] == "Sequence":
        parts = layout["pretokenizers"]
    *earlier, last = parts
    if last.get("type") == "ByteLevel" and not last["add_prefix_space"]:
        if not earlier and last["use_regex"]:
            return "byte-level"
        if earlier == [{"type": "Digits", "individual_digits": True}] and last["use_regex"]:
            return "digits, byte-level"
        if len(earlier) == 1 and earlier[0]["type"] == "Split" and not last["use_regex"]:
            pattern = earlier[0]["pattern"].get("Regex")
            if pattern and earlier[0]["behavior"] == "Isolated" and not earlier[0]["invert"]:
                return str(pattern)
    return json.dumps(layout, ensure_ascii=False)


def _write_sentencepiece(
    writer: GGUFWriter, base: Base, content: dict[str, Any], tokens: list[str]
) -> list[str]:
    prefix, notes = _space_prefix(base, content)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(_scores(content["model"]["merges"], tokens))
    writer.add_add_space_prefix(prefix)
    return notes


def _space_prefix(base: Base, content: dict[str, Any]) -> tuple[bool, list[str]]:
    """Whether the tokenizer adds a space before a text, with a note if it does so only at the very
    beginning: llama.cpp also adds one after every control token.
    """
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    normalizer, layout = content["normalizer"], content["pre_tokenizer"] or {}
    if normalizer == replace:
        # No space is left to split at.
        if not layout or (layout["type"] == "Split" and layout["pattern"] == {"String": " "}):
            return False, []
    elif normalizer == {"type": "Sequence", "normalizers": [prepend, replace]} and not layout:
        return True, []
    elif normalizer is None and layout.get("type") == "Metaspace" and not layout["split"]:
        scheme = layout["prepend_scheme"]
        note = say(
            "llama.cpp puts a space after every control token of this vocabulary; onebase puts one only "
            "at the start of the text, so chats may be tokenized differently.",
            "llama.cpp 会在该词表的每个控制词元后加空格，而 onebase 只在文本开头加，因此对话的分词可能不同。",
        )
        return scheme != "never", [note] if scheme == "first" else []
    _refuse(base, json.dumps([normalizer, layout], ensure_ascii=False))


def _scores(merges: list[Any], tokens: list[str]) -> list[float]:
    """The score of each token: minus the rank of the first merge that produces it.

    The best score then belongs to the merge that the tokenizer applies first. Tokens that no merge
    produces get the lowest score.
    """
    rank_of: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        rank_of.setdefault("".join(pair), rank)
    return [-float(rank_of.get(token, len(merges))) for token in tokens]


def _write_special(writer: GGUFWriter, base: Base) -> None:
    tokenizer, config = base.tokenizer, base.model.config
    ids: list[int] = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is None and isinstance(config.bos_token_id, int):
        bos = config.bos_token_id  # without one llama.cpp uses any token
    for write, index in (
        (writer.add_bos_token_id, bos),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None:
            write(index)
    writer.add_add_bos_token(bool(ids) and ids[0] == bos)
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _write_ends(writer: GGUFWriter, base: Base, ends: AnswerEnds, types: list[int]) -> list[str]:
    """Write the end tokens, for which GGUF has three fields: end of text, of turn and of message."""
    if ends.eos is None or ends.turn is None:
        # By default llama.cpp uses token 11, or 2 in a SentencePiece vocabulary.
        writer.add_eos_token_id(_never_generated(base, types))
        return [
            say(
                "Its answers have no end token, here or in other programs: set a stop string or a limit.",
                "它的回答没有结束词元，在其他软件中也一样：请设置停止字符串或长度上限。",
            )
        ]
    writer.add_eos_token_id(ends.eos)
    writer.add_eot_token_id(ends.turn)
    others = [token for token in ends.tokens if token not in (ends.eos, ends.turn)]
    for token in others[:1]:
        writer.add_eom_token_id(token)
    if len(others) < 2:
        return []
    names = ", ".join(repr(base.tokenizer.convert_ids_to_tokens(token)) for token in others[1:])
    return [
        say(
            f"GGUF can store only three end tokens: set {names} as stop strings in other programs.",
            f"GGUF 最多记录三个结束词元：在其他软件中请将 {names} 设为停止字符串（stop）。",
        )
    ]


def _never_generated(base: Base, types: list[int]) -> int:
    """A token that occurs in no answer: an unused one, the padding token, or the first of a text."""
    if TokenType.UNUSED in types:
        return types.index(TokenType.UNUSED)
    tokenizer = base.tokenizer
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    return next((token for token in ids if token is not None), len(types) - 1)
