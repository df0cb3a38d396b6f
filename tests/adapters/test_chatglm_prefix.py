"""Checkpoints of ChatGLM2's own P-tuning v2, against an implementation of its forward pass in float64.

The reference takes the prefix and the positions of the text as modeling_chatglm.py does: keys and values
from `get_prompt`, the text's positions from 0.
"""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from onebase.adapters.adapter_folder import AdapterFolder
from onebase.adapters.chatglm_prefix import is_chatglm_prefix, load_chatglm_prefix
from onebase.adapters.importing import find_adapter, read_adapter
from onebase.adapters.peft_format import load_adapter
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.errors import CorruptFileError, UsageError
from onebase.model.base import Base

TOKENS, LAYERS, GROUPS, CHANNELS, HIDDEN = 5, 3, 2, 8, 32  # of the tiny GLM
WIDTH = LAYERS * 2 * GROUPS * CHANNELS
EMBEDDING = "transformer.prefix_encoder.embedding.weight"
IDS = [5, 17, 33, 120, 9, 4, 77, 250, 31, 8, 6, 99]
CONFIG = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMForConditionalGeneration"],
    "num_layers": LAYERS,
    "kv_channels": CHANNELS,
    "multi_query_attention": True,
    "multi_query_group_num": GROUPS,
    "hidden_size": HIDDEN,
    "pre_seq_len": TOKENS,
    "prefix_projection": False,
}
Weights = dict[str, Tensor]


def encoder(*, projection: bool, kind: torch.dtype = torch.float32) -> Weights:
    drawn = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return (0.7 * torch.randn(*shape, generator=drawn)).to(kind)

    weights = {"embedding.weight": normal(TOKENS, WIDTH)}
    if projection:
        weights |= {
            "trans.0.weight": 0.3 * normal(HIDDEN, WIDTH),
            "trans.0.bias": normal(HIDDEN),
            "trans.2.weight": 0.3 * normal(WIDTH, HIDDEN),
            "trans.2.bias": normal(WIDTH),
        }
    return {f"transformer.prefix_encoder.{name}": weight for name, weight in weights.items()}


def write(folder: Path, weights: Weights, form: str = "zip", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    if form == "safetensors":
        save_file(weights, folder / "model.safetensors")
    else:
        torch.save(
            weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip"
        )
    return folder


def get_prompt(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, each [tokens, groups, channels], as the original makes them."""
    own = {name.partition("prefix_encoder.")[2]: w.double() for name, w in weights.items()}
    past = own["embedding.weight"][None]
    if "trans.0.weight" in own:
        inside = torch.nn.functional.linear(past, own["trans.0.weight"], own["trans.0.bias"])
        past = torch.nn.functional.linear(inside.tanh(), own["trans.2.weight"], own["trans.2.bias"])
    past = past.view(1, TOKENS, LAYERS * 2, GROUPS, CHANNELS)
    return [(pair[0][:, 0], pair[1][:, 0]) for pair in past.permute(2, 1, 0, 3, 4).split(2)]


class Reference:
    """The pass over a GLM's weights in float64, head by head, with rotations as complex numbers."""

    def __init__(self, base: Base) -> None:
        self.config = base.model.config
        self.weights = {name: p.detach().double() for name, p in base.model.named_parameters()}

    def __call__(self, ids: list[int], prefix: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """Logits, [tokens, vocabulary]."""
        hidden = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(LAYERS):
            at = f"model.layers.{layer}"
            normed = self._norm(hidden, f"{at}.input_layernorm")
            own = None if prefix is None else prefix[layer]
            hidden = hidden + self._attention(normed, f"{at}.self_attn", own)
            normed = self._norm(hidden, f"{at}.post_attention_layernorm")
            gate, up = (normed @ self.weights[f"{at}.mlp.gate_up_proj.weight"].T).chunk(2, dim=1)
            hidden = (
                hidden + (gate * gate.sigmoid() * up) @ self.weights[f"{at}.mlp.down_proj.weight"].T
            )
        hidden = self._norm(hidden, "model.norm")
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return hidden @ head.T

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        root = (hidden.square().mean(dim=-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        return hidden / root * self.weights[f"{name}.weight"]

    def _attention(self, hidden: Tensor, name: str, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
        def projected(letter: str) -> Tensor:
            bias = self.weights.get(f"{name}.{letter}_proj.bias", torch.zeros(1).double())
            rows = hidden @ self.weights[f"{name}.{letter}_proj.weight"].T + bias
            return rows.view(len(hidden), -1, CHANNELS)

        queries, keys, values = projected("q"), projected("k"), projected("v")
        answers = []
        for head in range(self.config.num_attention_heads):
            group = head // (self.config.num_attention_heads // GROUPS)
            query, key = self._rotated(queries[:, head]), self._rotated(keys[:, group])
            value, before = values[:, group], 0
            if prefix is not None:
                before = TOKENS
                key = torch.cat([prefix[0][:, group], key])
                value = torch.cat([prefix[1][:, group], value])
            scores = query @ key.T / CHANNELS**0.5
            later = torch.arange(len(key)) - before > torch.arange(len(query))[:, None]
            answers.append(scores.masked_fill(later, -torch.inf).softmax(dim=1) @ value)
        return torch.cat(answers, dim=1) @ self.weights[f"{name}.o_proj.weight"].T

    def _rotated(self, vectors: Tensor) -> Tensor:
        turning = CHANNELS // 2
        pairs = torch.view_as_complex(vectors[:, :turning].reshape(len(vectors), -1, 2))
        speeds = 10000.0 ** -(torch.arange(0, turning, 2).double() / turning)
        angles = torch.outer(torch.arange(len(vectors)).double(), speeds)
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles))
        return torch.cat([turned.flatten(1), vectors[:, turning:]], dim=1)


def ours(base: Base, folder: Path) -> Tensor:
    adapter = read_adapter(find_adapter(folder), base).adapter.eval()
    return logits(base, adapter)


def logits(base: Base, adapter: Any) -> Tensor:
    pack = Pack({"x": adapter.contribution()})
    node = pack.nodes[pack.add("x", IDS)]
    with torch.no_grad():
        return run_pack(base, pack, torch.arange(node.start, node.start + node.length)).double()


@pytest.fixture
def glm(make_base: Callable[..., Base]) -> Base:
    return make_base("glm")


def test_the_reference_is_the_model(glm: Base) -> None:
    with torch.no_grad():
        theirs = glm.model(input_ids=torch.tensor([IDS])).logits[0].double()
    torch.testing.assert_close(Reference(glm)(IDS, None), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("zip", torch.float32),
        ("zip", torch.float16),
        ("older", torch.float32),
        ("safetensors", torch.float32),
    ],
)
def test_logits_equal_the_reference(
    glm: Base, tmp_path: Path, projection: bool, form: str, kind: torch.dtype
) -> None:
    weights = encoder(projection=projection, kind=kind)
    folder = write(tmp_path / "checkpoint", weights, form, prefix_projection=projection)
    expected = Reference(glm)(IDS, get_prompt(weights))
    plain = Reference(glm)(IDS, None)
    assert float((expected - plain).abs().max()) > 0.3
    torch.testing.assert_close(ours(glm, folder), expected, atol=2e-4, rtol=0)


def test_it_is_stored_as_any_prefix(glm: Base, tmp_path: Path) -> None:
    weights = encoder(projection=True)
    folder = write(tmp_path / "checkpoint", weights, prefix_projection=True)
    found = read_adapter(find_adapter(folder), glm)
    (tmp_path / "stored").mkdir()
    found.write(tmp_path / "stored")
    again = load_adapter(tmp_path / "stored", glm)
    assert (again.method, again.options) == ("p-tuning-v2", {"virtual_tokens": TOKENS})
    torch.testing.assert_close(
        logits(glm, again.eval()), logits(glm, found.adapter.eval()), atol=0, rtol=0
    )
    expected = Reference(glm)(IDS, get_prompt(weights))
    torch.testing.assert_close(logits(glm, again), expected, atol=2e-4, rtol=0)
    assert found.notes == ()


def test_other_weights_in_the_file_are_told(glm: Base, tmp_path: Path) -> None:
    weights = encoder(projection=False)
    folder = write(tmp_path / "a", {**weights, "transformer.output_layer.weight": torch.ones(2, 2)})
    (note,) = read_adapter(find_adapter(folder), glm).notes
    assert "1 other weights" in note


SIZES: list[tuple[str, dict[str, Any], Callable[[Weights], object], str]] = [
    ("tokens", {"pre_seq_len": 6}, lambda w: None, r"\(5, 96\), but this base needs \(6, 96\)"),
    (
        "width",
        {},
        lambda w: w.update({EMBEDDING: torch.ones(TOKENS, 2 * WIDTH)}),
        r"\(5, 192\), but this base needs \(5, 96\)",
    ),
    (
        "scalar",
        {},
        lambda w: w.update({EMBEDDING: torch.tensor(1.0)}),
        r"\(\), but this base needs",
    ),
    ("layers", {"num_layers": 28}, lambda w: None, "num_layers is 28, but tiny-glm has 3"),
    ("groups", {"multi_query_group_num": 1}, lambda w: None, "group_num is 1, but tiny-glm has 2"),
    ("channels", {"kv_channels": 128}, lambda w: None, "kv_channels is 128, but tiny-glm has 8"),
    ("hidden", {"hidden_size": 4096}, lambda w: None, "hidden_size is 4096, but tiny-glm has 32"),
    ("missing", {}, lambda w: w.pop(EMBEDDING), "has no transformer.prefix_encoder"),
    ("no projection", {"prefix_projection": True}, lambda w: None, "trans.0.weight is missing"),
    (
        "a projection unsaid",
        {},
        lambda w: w.update(encoder(projection=True)),
        "prefix_projection is False",
    ),
    ("integers", {}, lambda w: w.update({EMBEDDING: w[EMBEDDING].int()}), "holds int32"),
    ("nan", {}, lambda w: w[EMBEDDING].fill_(float("nan")), "not finite"),
    (
        "a few that claim to be many",
        {},
        lambda w: w.update({EMBEDDING: torch.ones(1).expand(TOKENS, WIDTH)}),
        "more memory",
    ),
    ("no data", {}, lambda w: w.update({EMBEDDING: w[EMBEDDING].to("meta")}), "floating point"),
    *(
        (f"pre_seq_len {value!r}", {"pre_seq_len": value}, lambda w: None, "pre_seq_len is")
        for value in (0, -1, 10**12, "128", 2.5, True, [5])
    ),
    (
        "prefix_projection",
        {"prefix_projection": "yes"},
        lambda w: None,
        "prefix_projection is 'yes'",
    ),
]


@pytest.mark.parametrize(
    ("changes", "change", "words"), [c[1:] for c in SIZES], ids=[c[0] for c in SIZES]
)
def test_what_does_not_fit_is_refused_with_both_sizes(
    glm: Base,
    tmp_path: Path,
    changes: dict[str, Any],
    change: Callable[[Weights], object],
    words: str,
) -> None:
    weights = encoder(projection=False)
    change(weights)
    folder = write(tmp_path / "checkpoint", weights, **changes)
    with pytest.raises(CorruptFileError, match=words) as caught:
        load_chatglm_prefix(AdapterFolder(folder, foreign=True), glm)
    assert str(folder) in caught.value.message


class Trap:
    """A pickle that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def compressed(content: bytes) -> bytes:
    """The same archive, its members compressed."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member), zipfile.ZIP_DEFLATED)
    return made.getvalue()


@pytest.mark.parametrize(
    "damage",
    ["trap", "older trap", "bare trap", "cut", "empty", "text", "list", "compressed", "flipped"],
)
def test_a_file_of_anything_but_tensors_is_refused(glm: Base, tmp_path: Path, damage: str) -> None:
    folder, sprung = write(tmp_path / "a", encoder(projection=False)), tmp_path / "sprung"
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    if damage.endswith("trap"):
        held: Any = {**encoder(projection=False), "more": Trap(sprung)}
        torch.save(held, file, _use_new_zipfile_serialization=damage == "trap")
        if damage == "bare trap":
            file.write_bytes(pickle.dumps(held["more"]))
    elif damage == "list":
        torch.save([torch.ones(1)], file)
    else:
        flipped = whole.replace(b"prefix_encoder", b"prefix\xff\xff\xff\xff\xff\xff\xff\xff")
        contents = {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"not a pickle",
            "compressed": compressed(whole),
            "flipped": flipped,
        }
        file.write_bytes(contents[damage])
    with pytest.raises(CorruptFileError, match=r"pytorch_model\.bin"):
        load_chatglm_prefix(AdapterFolder(folder, foreign=True), glm)
    assert not sprung.exists()


def test_no_weights(glm: Base, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", encoder(projection=False))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CorruptFileError, match="exists"):
        load_chatglm_prefix(AdapterFolder(folder, foreign=True), glm)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_another_kind_of_base_is_refused(
    make_base: Callable[..., Base], tmp_path: Path, architecture: str
) -> None:
    folder = write(tmp_path / "a", encoder(projection=False))
    with pytest.raises(UsageError, match=f"tiny-{architecture} is no ChatGLM"):
        load_chatglm_prefix(AdapterFolder(folder, foreign=True), make_base(architecture))


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"pre_seq_len": 5}', True), ('{"pre_seq_len": null}', False), ("[]", False), ("{", False)],
)
def test_which_folders_hold_one(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert is_chatglm_prefix(tmp_path) is expected
