"""ChatGLM2 and ChatGLM3 from their original files, against an implementation of the architecture here."""

import contextlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import modeling_rope_utils
from transformers.models.glm import modeling_glm

import onebase
from onebase.adapters.adapter import Adapter
from onebase.adapters.full import FULL, trainable_copy
from onebase.adapters.methods import METHODS, build_adapter
from onebase.adapters.peft_format import load_adapter
from onebase.cli.app import main
from onebase.data.template import Template
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.engine.rows import TokenRow, token_losses
from onebase.engine.sampling import Sampling
from onebase.errors import CorruptFileError
from onebase.model.base import Base
from onebase.model.chatglm_config import generation
from onebase.model.eos import end_tokens
from onebase.model.fetch import resolve
from onebase.model.weights import read_model

Write = Callable[..., Path]
Weights = dict[str, Tensor]
IDS = torch.randint(3, 420, (24,), generator=torch.Generator().manual_seed(1))
INDEX = "pytorch_model.bin.index.json"
LAST = "pytorch_model-00003-of-00003.bin"


class Reference:
    """ChatGLM2's forward pass in float64, head by head, over weights of its own names.

    Queries and keys are rotated as complex numbers. `position_scale` and `base` are what the 32K
    models change of the rotary embedding.
    """

    def __init__(self, folder: Path, *, position_scale: float = 1.0, base: float = 10000.0) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.weights = {name: value.double() for name, value in stored(folder).items()}
        self.position_scale = position_scale
        self.base = base

    def embed(self, ids: Tensor) -> Tensor:
        return self.weights["transformer.embedding.word_embeddings.weight"][ids]

    def __call__(self, hidden: Tensor, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Logits of embeddings, [tokens, vocabulary]; `prefix` as in Contribution."""
        for layer in range(self.config["num_layers"]):
            at = f"transformer.encoder.layers.{layer}"
            normed = self._norm(hidden, f"{at}.input_layernorm")
            own = None if prefix is None else (prefix[0][layer], prefix[1][layer])
            hidden = hidden + self._attention(normed, f"{at}.self_attention", own)
            normed = self._norm(hidden, f"{at}.post_attention_layernorm")
            hidden = hidden + self._mlp(normed, f"{at}.mlp")
        hidden = self._norm(hidden, "transformer.encoder.final_layernorm")
        return hidden @ self.weights["transformer.output_layer.weight"].T

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        mean_square = (hidden * hidden).mean(dim=-1, keepdim=True)
        root = (mean_square + self.config["layernorm_epsilon"]).sqrt()
        return hidden / root * self.weights[f"{name}.weight"]

    def _mlp(self, hidden: Tensor, name: str) -> Tensor:
        wide = hidden @ self.weights[f"{name}.dense_h_to_4h.weight"].T
        gate, up = wide[:, : wide.shape[1] // 2], wide[:, wide.shape[1] // 2 :]
        return (gate * gate.sigmoid() * up) @ self.weights[f"{name}.dense_4h_to_h.weight"].T

    def _attention(self, hidden: Tensor, name: str, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
        heads, size = self.config["num_attention_heads"], self.config["kv_channels"]
        mixed = hidden @ self.weights[f"{name}.query_key_value.weight"].T
        if self.config["add_qkv_bias"]:
            mixed = mixed + self.weights[f"{name}.query_key_value.bias"]
        columns = mixed.split(size, dim=1)
        if self.config["multi_query_attention"]:
            groups = self.config["multi_query_group_num"]
            queries = columns[:heads]
            keys, values = columns[heads : heads + groups], columns[heads + groups :]
        else:
            groups = heads
            queries, keys, values = columns[0::3], columns[1::3], columns[2::3]
        before = 0 if prefix is None else prefix[0].shape[1]
        answers = []
        for head in range(heads):
            group = head // (heads // groups)
            query = self._rotated(queries[head], before)
            key, value = self._rotated(keys[group], before), values[group]
            if prefix is not None:
                key = torch.cat([prefix[0][group], key])
                value = torch.cat([prefix[1][group], value])
            scores = query @ key.T / size**0.5
            later = torch.arange(len(key)) - before > torch.arange(len(query))[:, None]
            answers.append(scores.masked_fill(later, -torch.inf).softmax(dim=1) @ value)
        return torch.cat(answers, dim=1) @ self.weights[f"{name}.dense.weight"].T

    def _rotated(self, vectors: Tensor, first: int) -> Tensor:
        turning = vectors.shape[1] // 2
        pairs = torch.view_as_complex(vectors[:, :turning].reshape(len(vectors), -1, 2))
        speeds = self.base ** -(torch.arange(0, turning, 2).double() / turning)
        positions = (torch.arange(len(vectors)).double() + first) / self.position_scale
        angles = torch.outer(positions, speeds)
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles))
        return torch.cat([turned.flatten(1), vectors[:, turning:]], dim=1)


def stored(folder: Path) -> Weights:
    """Every weight in a folder's shards."""
    found: Weights = {}
    for file in sorted(folder.glob("*.bin")):
        found |= torch.load(file, weights_only=True)
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


class WideTorch:
    """torch, with float64 for float32."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def float64_logits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Load a folder and compute its logits, in float64 even what transformers holds to float32."""

    def compute(folder: Path, ids: Tensor = IDS) -> Tensor:
        for module in (modeling_glm, modeling_rope_utils):
            monkeypatch.setattr(module, "torch", WideTorch())
        model = Base.load(str(folder)).model.double()
        with torch.no_grad():
            found: Tensor = model(input_ids=ids[None]).logits[0]
        return found

    return compute


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("generation", [2, 3])
def test_logits_equal_the_reference(
    write_chatglm: Write,
    float64_logits: Callable[..., Tensor],
    generation: int,
    groups: int,
    form: str,
) -> None:
    folder = write_chatglm(generation, form, multi_query_group_num=groups)
    theirs = Reference(folder)
    expected = theirs(theirs.embed(IDS))
    assert float(expected.std()) > 0.5
    close(float64_logits(folder), expected, 1e-10)


@pytest.mark.parametrize(
    ("generation", "changes", "rotary"),
    [
        (2, {"rope_ratio": 4}, {"position_scale": 4.0}),
        (3, {"rope_ratio": 50}, {"base": 500000.0}),
        (2, {"rope_ratio": 1}, {}),
        (2, {"multi_query_attention": False}, {}),
        (2, {"add_qkv_bias": False}, {}),
        (2, {"num_attention_heads": 2, "multi_query_group_num": 2}, {}),
        (3, {"layernorm_epsilon": 0.1}, {}),
        (3, {"kv_channels": 4}, {}),
    ],
)
def test_what_a_config_may_say_otherwise(
    write_chatglm: Write,
    float64_logits: Callable[..., Tensor],
    generation: int,
    changes: dict[str, Any],
    rotary: dict[str, float],
) -> None:
    folder = write_chatglm(generation, **changes)
    theirs = Reference(folder, **rotary)
    close(float64_logits(folder), theirs(theirs.embed(IDS)), 1e-10)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_weights_keep_their_type_and_are_not_copied(
    write_chatglm: Write, kind: torch.dtype, form: str
) -> None:
    folder = write_chatglm(form=form, kind=kind)
    model = read_model(folder, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {kind}
    assert model.config.dtype == kind
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    attention = model.model.layers[0].self_attn
    parts = [getattr(attention, f"{letter}_proj").weight for letter in "qkv"]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    if sys.platform.startswith("linux"):
        assert all(file_at(parameter).startswith(str(folder)) for parameter in model.parameters())


def file_at(tensor: Tensor) -> str:
    """The file that is mapped where a tensor lies."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, *_, name = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= tensor.data_ptr() < end:
            return name
    raise AssertionError("nowhere")


def test_a_config_without_a_type_takes_the_files(write_chatglm: Write) -> None:
    model = read_model(write_chatglm(kind=torch.bfloat16, torch_dtype=None), dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_one_file_without_an_index(
    write_chatglm: Write, float64_logits: Callable[..., Tensor], form: str
) -> None:
    folder = write_chatglm(form=form)
    weights = stored(folder)
    for file in folder.glob(f"*.{form}*"):
        file.unlink()
    if form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")
    theirs = Reference(folder)
    close(float64_logits(folder), theirs(theirs.embed(IDS)), 1e-10)


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_a_file_of_the_older_pickle_form(
    write_chatglm: Write, float64_logits: Callable[..., Tensor], kind: torch.dtype
) -> None:
    folder = write_chatglm(kind=kind)
    for file in folder.glob("*.bin"):
        weights = torch.load(file, weights_only=True)
        torch.save(weights, file, _use_new_zipfile_serialization=False)
    theirs = Reference(folder)
    close(float64_logits(folder), theirs(theirs.embed(IDS)), 1e-10)


def test_the_base_knows_its_shape_and_its_ends(write_chatglm: Write) -> None:
    base = Base.load(str(write_chatglm()))
    shape = base.shape
    assert (shape.hidden, shape.layers, shape.heads, shape.kv_heads) == (48, 3, 4, 2)
    assert (shape.head_dim, shape.vocabulary, base.context) == (16, 448, 512)
    assert base.model.generation_config.eos_token_id == [2]
    three = Base.load(str(write_chatglm(3, name="chatglm3")))
    assert three.model.generation_config.eos_token_id == [2, 426, 428]
    assert end_tokens(base, Template(base.tokenizer)) == {2}
    assert end_tokens(three, Template(three.tokenizer)) == {2, 426, 428}


def test_one_fingerprint_whatever_the_form(write_chatglm: Write) -> None:
    one = Base.load(str(write_chatglm(form="bin", name="one")))
    other = Base.load(str(write_chatglm(form="safetensors", name="other")))
    assert one.fingerprint == other.fingerprint


class Trap:
    """A pickle that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("packed", ["zip", "older", "bare", "beside the weights"])
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(
    write_chatglm: Write, tmp_path: Path, packed: str
) -> None:
    folder, sprung = write_chatglm(), tmp_path / "sprung"
    file = folder / LAST
    held: Any = Trap(sprung)
    if packed == "beside the weights":
        held = torch.load(file, weights_only=True) | {"extra": held}
    if packed == "bare":
        file.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, file, _use_new_zipfile_serialization=packed != "older")
    with pytest.raises(CorruptFileError, match="something other than weights") as caught:
        Base.load(str(folder))
    assert LAST in caught.value.message
    assert not sprung.exists()
    with contextlib.suppress(RuntimeError):  # "bare" is no file of torch.save, but is unpickled
        torch.load(file, weights_only=False)
    assert sprung.exists()  # the trap is a real one


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rmsnorm", False),
        ("post_layer_norm", False),
        ("original_rope", False),
        ("add_bias_linear", True),
        ("apply_residual_connection_post_layernorm", True),
        ("fp32_residual_connection", True),
        ("tie_word_embeddings", True),
        ("quantization_bit", 4),
        ("pre_seq_len", 128),
        ("position_encoding_2d", True),
        ("vision_config", {}),
        ("torch_dtype", "int8"),
        ("num_layers", "3"),
        ("num_layers", 0),
        ("kv_channels", None),
        ("kv_channels", 10),
        ("multi_query_group_num", 3),
        ("rope_ratio", 0),
        ("layernorm_epsilon", float("nan")),
    ],
)
def test_a_config_that_cant_be_followed_is_refused_by_name(
    write_chatglm: Write, field: str, value: Any
) -> None:
    folder = write_chatglm()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {field: value}), encoding="utf-8")
    refused(folder, f"{field}={value!r}")


def test_a_rope_ratio_of_an_unnamed_model_is_refused(write_chatglm: Write) -> None:
    folder = write_chatglm(rope_ratio=8, _name_or_path="mine")
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenization_chatglm.py").unlink()
    refused(folder, "rope_ratio=8")


@pytest.mark.parametrize(
    ("file", "content", "which"),
    [
        ("config.json", '{"_name_or_path": "THUDM/ChatGLM3-6B-32K"}', 3),
        ("config.json", '{"_name_or_path": "/data/chatglm2-6b-mine"}', 2),
        ("tokenizer_config.json", '{"name_or_path": "THUDM/chatglm3-6b"}', 3),
        ("tokenizer_config.json", '{"name_or_path": "THUDM/chatglm2-6b"}', 2),
        ("tokenizer_config.json", '{"chat_template": "<|user|>"}', 3),
        ("tokenization_chatglm.py", 'ROLES = ["<|user|>"]', 3),
        ("tokenization_chatglm.py", 'CONTROL = ["sop", "eop"]', 2),
        ("config.json", "{}", None),
        ("tokenizer_config.json", "{}", None),
    ],
)
def test_what_tells_chatglm2_from_chatglm3(
    tmp_path: Path, file: str, content: str, which: int | None
) -> None:
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert generation(tmp_path) == which


def test_an_unnamed_model_is_a_chatglm2(write_chatglm: Write) -> None:
    folder = write_chatglm(_name_or_path="mine")
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenization_chatglm.py").unlink()
    assert "[Round 1]" in Template(Base.load(str(folder)).tokenizer).prompt_text("你好")


def refused(folder: Path, fact: str) -> None:
    with pytest.raises(CorruptFileError) as caught:
        Base.load(str(folder))
    assert fact in caught.value.message
    assert str(folder) in caught.value.message
    assert (caught.value.exit_code, caught.value.code) == (1, "corrupt")
    assert "config.json, *.safetensors and the tokenizer" in caught.value.remedy


def change(folder: Path, edit: Callable[[Weights], Any]) -> None:
    """Edit the weights of the last shard, which holds the head."""
    weights = torch.load(folder / LAST, weights_only=True)
    edit(weights)
    torch.save(weights, folder / LAST)


HEAD = "transformer.output_layer.weight"


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda held: held.pop(HEAD), f"1 weights are missing, such as {HEAD}"),
        (lambda held: held.update(extra=torch.ones(1)), "extra, which this model does not have"),
        (
            lambda held: held.update({HEAD: held[HEAD][1:]}),
            f"the weight {HEAD} in {LAST} is [447, 48] float16, not [448, 48]",
        ),
        (
            lambda held: held.update({HEAD: held[HEAD].to(torch.int8)}),
            "is [448, 48] int8, not [448, 48] in floating point",
        ),
        (
            lambda held: held.update(
                {"transformer.embedding.word_embeddings.weight": torch.ones(448, 48)}
            ),
            "a second weight transformer.embedding",
        ),
        (lambda held: held.update({HEAD: [1.0]}), "is not a dictionary of weights"),
    ],
)
def test_a_weight_that_doesnt_fit(
    write_chatglm: Write, edit: Callable[[Weights], Any], fact: str
) -> None:
    folder = write_chatglm()
    change(folder, edit)
    refused(folder, fact)


def test_a_missing_shard(write_chatglm: Write) -> None:
    folder = write_chatglm()
    (folder / LAST).unlink()
    refused(folder, f"{INDEX} names {LAST}, which does not exist")


def test_no_weights_at_all(write_chatglm: Write) -> None:
    folder = write_chatglm()
    for file in folder.glob("pytorch_model*"):
        file.unlink()
    refused(folder, "neither model.safetensors nor pytorch_model.bin")


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": []}}']
    + [f'{{"weight_map": {{"a": "{name}"}}}}' for name in ("../outside.bin", "/outside.bin", "")],
)
def test_an_index_that_is_none(write_chatglm: Write, content: str) -> None:
    folder = write_chatglm()
    (folder / INDEX).write_text(content, encoding="utf-8")
    refused(folder, f"{INDEX} has no weight_map")


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_a_file_cut_short(write_chatglm: Write, form: str, kept: float) -> None:
    folder = write_chatglm(form=form)
    file = sorted(folder.glob(f"*-of-00003.{form}"))[1]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept) if kept == 0.5 else int(kept)])
    refused(folder, "")


@pytest.mark.parametrize("kept", [14, 15, 100, 1000, -1])
def test_a_file_of_the_older_form_cut_short(write_chatglm: Write, kept: int) -> None:
    folder = write_chatglm()
    file = folder / LAST
    weights = torch.load(file, weights_only=True)
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, "")


def test_noise_for_weights(write_chatglm: Write) -> None:
    folder = write_chatglm()
    drawn = torch.Generator().manual_seed(0)
    for _ in range(50):
        noise = torch.randint(0, 256, (500,), generator=drawn, dtype=torch.uint8)
        (folder / LAST).write_bytes(noise.numpy().tobytes())
        refused(folder, "")
    noise = torch.randint(0, 256, (3,), generator=drawn, dtype=torch.uint8)
    real = (folder / "pytorch_model-00001-of-00003.bin").read_bytes()
    for at in range(0, 2000, 40):  # the pickle stands at the beginning of the archive
        (folder / LAST).write_bytes(real[:at] + noise.numpy().tobytes() + real[at + 3 :])
        refused(folder, "")


def test_no_tokenizer(write_chatglm: Write) -> None:
    folder = write_chatglm()
    (folder / "tokenizer.model").unlink()
    refused(folder, "tokenizer.model is missing")


def test_another_kind_of_tokenizer(write_chatglm: Write) -> None:
    """GLM-4's, lines of base64, under the same name."""
    folder = write_chatglm()
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n", encoding="utf-8")
    refused(folder, "tokenizer.model is not a SentencePiece model")


def test_a_tokenizer_larger_than_the_model(write_chatglm: Write) -> None:
    refused(write_chatglm(padded_vocab_size=424), "has 425 tokens, but the model only 424")


def test_a_hub_model_without_safetensors_is_fetched_as_pickles(
    write_chatglm: Write, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_chatglm()
    asked: list[list[str]] = []

    def download(_: str, *, local_dir: Path, allow_patterns: list[str]) -> None:
        asked.append(allow_patterns)
        for pattern in allow_patterns:
            for file in source.glob(pattern):
                (local_dir / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = resolve("THUDM/chatglm2-6b")
    assert folder.parent == cache
    assert asked[1:] == [["pytorch_model*.bin"]]
    assert not list(folder.glob("*.py"))
    assert Base.load("THUDM/chatglm2-6b").shape.hidden == 48
    (source / "model.safetensors").touch()
    resolve("THUDM/chatglm3-6b")
    assert len(asked) == 3


# Every method on this base.
SETTINGS = {
    "lora": {"rank": 4},
    "prompt-tuning": {"virtual_tokens": 5},
    "p-tuning": {"virtual_tokens": 4, "hidden": 16},
    "p-tuning-v2": {"virtual_tokens": 6},
}


def load(folder: Path, method: str) -> Base:
    return Base.load(str(folder), precision="nf4" if method == "qlora" else None)


def moved(base: Base, method: str) -> Adapter:
    """An adapter that is not where it started, as if it had been trained."""
    adapter = build_adapter(base, method, SETTINGS.get(method, {}), init_text="你好，", seed=1)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += torch.randn_like(parameter) * 0.2
    return adapter


def reference_with(adapter: Adapter, folder: Path, ids: Tensor) -> Tensor:
    """The reference's logits of `ids` with an adapter, its deltas merged into the fused weights."""
    theirs, brought = Reference(folder), adapter.contribution()
    for name, delta in brought.deltas.items():
        _, _, layer, _, linear = name.split(".")
        change = (delta.scale * delta.b @ delta.a).double()
        at = f"transformer.encoder.layers.{layer}"
        if linear[0] in "qkv":
            fused = theirs.weights[f"{at}.self_attention.query_key_value.weight"]
            rows = {"q": slice(0, 64), "k": slice(64, 96), "v": slice(96, 128)}[linear[0]]
            fused[rows] += change
        else:
            place = {
                "o_proj": "self_attention.dense",
                "gate_up_proj": "mlp.dense_h_to_4h",
                "down_proj": "mlp.dense_4h_to_h",
            }[linear]
            theirs.weights[f"{at}.{place}.weight"] += change
    embedded = theirs.embed(ids)
    if brought.virtual is not None:
        embedded = torch.cat([brought.virtual.double(), embedded])
    prefix = brought.prefix
    if prefix is not None:
        prefix = (prefix[0].double(), prefix[1].double())
    return theirs(embedded, prefix)[brought.virtual_tokens :]


def test_a_mixed_pack_equals_the_reference_for_every_method(write_chatglm: Write) -> None:
    folder = write_chatglm()
    base = Base.load(str(folder))
    adapters = {method: moved(base, method) for method in SETTINGS}
    with torch.no_grad():
        pack = Pack({name: adapter.contribution() for name, adapter in adapters.items()})
        rows = {name: IDS[start:] for start, name in enumerate([None, *adapters])}
        nodes = {name: pack.add(name, ids.tolist()) for name, ids in rows.items()}
        found = run_pack(base, pack, torch.arange(len(pack.ids)))
        plain = Reference(folder)
        for name, index in nodes.items():
            node = pack.nodes[index]
            ours = found[node.start : node.start + node.length]
            bare = plain(plain.embed(rows[name]))
            if name is None:
                close(ours, bare, 1e-4)
                continue
            expected = reference_with(adapters[name], folder, rows[name])
            assert float((expected - bare).abs().max()) > 0.1  # it does something
            close(ours, expected, 1e-4)


def test_gradients_are_those_of_the_reference(write_chatglm: Write) -> None:
    folder = write_chatglm()
    base = Base.load(str(folder))
    for method in SETTINGS:
        adapter = moved(base, method)
        parameters = list(adapter.parameters())
        row = TokenRow("it", tuple(IDS.tolist()), (False,) * 9 + (True,) * 15)
        losses, _ = token_losses(base, [row], {"it": adapter.contribution()})
        expected = cross_entropy(
            reference_with(adapter, folder, IDS)[8:-1], IDS[9:], reduction="none"
        )
        close(losses, expected, 1e-4)
        found = torch.autograd.grad(losses.sum(), parameters)
        for ours, theirs in zip(
            found, torch.autograd.grad(expected.sum(), parameters), strict=True
        ):
            scale = theirs.abs().max()
            assert scale > 1e-3
            close(ours / scale, theirs.double() / scale, 1e-4)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("generation", [2, 3])
def test_every_method_learns(write_chatglm: Write, generation: int, method: str) -> None:
    base = load(write_chatglm(generation), method)
    base = trainable_copy(base) if method == FULL else base
    adapter = build_adapter(base, method, SETTINGS.get(method, {}), init_text="你好，", seed=0)
    template = Template(base.tokenizer)
    prompt, answer = template.prompt("你好"), template.answer_ids("很高兴见到你。")
    learned = [False] * len(prompt) + [True] * len(answer)
    row = TokenRow("task", (*prompt, *answer), tuple(learned))
    parameters = list(adapter.parameters())

    def loss_at(distance: float) -> float:
        """The loss so far along the gradient."""
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=distance / slope)
            found = token_losses(base, [row], {"task": adapter.contribution()})[0].mean()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=distance / slope)
        return float(found)

    loss = token_losses(base, [row], {"task": adapter.contribution()})[0].mean()
    gradients = torch.autograd.grad(loss, parameters)
    slope = float(sum(gradient.square().sum() for gradient in gradients) ** 0.5)
    assert (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3 == pytest.approx(slope, rel=1e-2)
    optimizer = torch.optim.AdamW(parameters, lr=METHODS[method].learning_rate)
    losses = []
    for _ in range(4):
        loss = token_losses(base, [row], {"task": adapter.contribution()})[0].mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", list(METHODS))
def test_train_and_answer(write_chatglm: Write, tmp_path: Path, method: str) -> None:
    folder = write_chatglm()
    data = tmp_path / "ad.jsonl"
    rows = [{"content": f"类型#上衣*颜色#{i}", "summary": f"百搭的上衣{i}。"} for i in range(5)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    data.write_text("".join(lines), encoding="utf-8")
    settings = SETTINGS.get(method, {}) | {"epochs": 2, "batch_size": 4}
    job = onebase.Job("ad", data, method=method, instruction="写一句广告词。", set=settings)
    base = load(folder, method)
    (adapter,) = onebase.train([job], base=base, workspace=onebase.Workspace(tmp_path / "ws"))
    assert adapter.record["base_fingerprint"] == base.fingerprint
    engine = onebase.Engine(load(folder, method), adapters=[adapter])
    answers = engine.generate(
        [("ad", "类型#上衣*颜色#白"), ("base", "你好")], Sampling(max_tokens=4)
    )
    assert answers[0].prompt == (
        "[gMASK]sop[Round 1]\n\n问：写一句广告词。\n类型#上衣*颜色#白\n\n答："
    )
    assert answers[1].prompt == "[gMASK]sop[Round 1]\n\n问：你好\n\n答："
    if method != "qlora":  # whose base has other weights
        assert answers[1].text == greedy(folder, base, "你好", 4)
    if method in SETTINGS:
        template = Template.from_config(base.tokenizer, adapter.record["template"])
        prompt = template.prompt("类型#上衣*颜色#白")
        own = load_adapter(adapter.path, base).eval()
        with torch.no_grad():
            expected = continued(
                lambda ids: reference_with(own, folder, torch.tensor(ids)), prompt, 4
            )
        assert answers[0].text == base.tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_greedy_answers_are_the_references(write_chatglm: Write) -> None:
    folder = write_chatglm()
    engine = onebase.Engine(onebase.Base.load(str(folder)))
    (answer,) = engine.generate([("base", "你好")], Sampling(max_tokens=6))
    assert answer.text == greedy(folder, engine.base, "你好", 6)


def continued(logits: Callable[[list[int]], Tensor], ids: list[int], most: int) -> list[int]:
    """The greedy tokens behind `ids`, up to the end token or `most`."""
    start = len(ids)
    while len(ids) < start + most:
        best = int(logits(ids)[-1].argmax())
        if best == 2:
            break
        ids = [*ids, best]
    return ids[start:]


def greedy(folder: Path, base: Base, asked: str, most: int) -> str:
    """The reference's answer."""
    theirs = Reference(folder)
    prompt = Template(base.tokenizer).prompt(asked)
    tokens = continued(lambda ids: theirs(theirs.embed(torch.tensor(ids))), prompt, most)
    return str(base.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Run `onebase ARGUMENTS… --json`; its JSON."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json"])
        written = capsys.readouterr()
        assert ended.value.code == 0, written.err
        return json.loads(written.out)

    return run


def test_generate_shows_the_round(write_chatglm: Write, command: Callable[..., Any]) -> None:
    folder = write_chatglm()
    options = ("--base", str(folder), "--precision", "fp32", "--prompt", "你好")
    (answer,) = command("generate", "--task", "base", *options, "--max-tokens", "3")["answers"]
    assert answer["prompt"] == "[gMASK]sop[Round 1]\n\n问：你好\n\n答："
    assert answer["text"] == greedy(folder, Base.load(str(folder)), "你好", 3)


def test_data_check_shows_the_round(
    write_chatglm: Write, command: Callable[..., Any], tmp_path: Path
) -> None:
    row = {"content": "类型#上衣", "summary": "百搭的上衣。"}
    (tmp_path / "ad.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    folder = str(write_chatglm())
    report = command("data", "check", "ad.jsonl", "--base", folder, "--instruction", "写广告。")
    assert report["first_example"] == (
        "[gMASK]sop[Round 1]\n\n问：写广告。\n类型#上衣\n\n答：⟦百搭的上衣。</s>⟧"
    )
    sentences = ["[Round 1]\n\n问：写广告。\n类型#上衣\n\n答：", "百搭的上衣。"]
    pieces = SentencePieceProcessor(model_file=f"{folder}/tokenizer.model").encode(sentences)
    assert report["total_tokens"] == 2 + len(pieces[0]) + len(pieces[1]) + 1
