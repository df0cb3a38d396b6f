"""The frozen trunk: the same losses and gradients from the layers above alone."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import onebase.engine.trunk as module
from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.adapters.methods import build_adapter
from onebase.engine.forward import run_below
from onebase.engine.pack import Pack
from onebase.engine.rows import TokenRow, token_losses
from onebase.engine.trunk import Trunk, common_prefix_length, lowest_changed_layer
from onebase.model.base import Base
from onebase.model.precision import choose

Rows = Callable[..., list[TokenRow]]
TOP = {
    "lora": {"rank": 3, "layers": "top:1"},
    "lora+ia3": {"rank": 2, "layers": "top:2"},
    "p-tuning-v2": {"virtual_tokens": 11, "layers": "top:2"},
    "lora+p-tuning-v2": {"rank": 2, "virtual_tokens": 5, "layers": "top:1"},
}


def shaken(base: Base, method: str, **settings: object) -> Adapter:
    adapter = build_adapter(base, method, settings, init_text="x", seed=0)
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return adapter


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("method", list(TOP))
def test_losses_and_gradients_are_those_of_the_whole_pass(
    method: str,
    shared: int,
    architecture: str,
    make_base: Callable[..., Base],
    make_rows: Rows,
) -> None:
    if "ia3" in method and architecture == "phi3":
        pytest.skip("IA3 is refused on Phi 3")
    base = make_base(architecture)
    adapters = {"a": shaken(base, method, **TOP[method]), "b": shaken(base, "lora", layers="2")}
    rows = [row for name in adapters for row in make_rows(name, shared=shared)]
    rows += make_rows(None, seed=3)
    trunk = Trunk(base)
    results = []
    for kept in (None, trunk, trunk):
        contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
        losses, _ = token_losses(base, rows, contributions, trunk=kept)
        parameters = [p for adapter in adapters.values() for p in adapter.parameters()]
        results.append((losses.detach(), torch.autograd.grad(losses.sum(), parameters)))
    texts = {row.ids for row in rows}
    tokens = sum(map(len, texts))
    common = common_prefix_length(list(texts)) * (len(texts) - 1)
    assert (trunk.computed_tokens, trunk.reused_tokens) == (tokens - common, tokens)
    # At other positions the angles of rotary embeddings are rounded otherwise, about 1e-6 of what
    # enters a layer; models as random as these make more of it.
    close, closer = (1e-3, 1e-4) if "v2" in method else (1e-5, 1e-5)
    for losses, gradients in results[1:]:
        torch.testing.assert_close(losses, results[0][0], atol=closer, rtol=0)
        for one, other in zip(gradients, results[0][1], strict=True):
            scale = float(other.abs().max())
            torch.testing.assert_close(one / scale, other / scale, atol=close, rtol=0)


def test_how_deep_an_adapter_reaches(make_base: Callable[..., Base]) -> None:
    base = make_base()
    depths = {
        ("lora", "top:1"): 2,
        ("lora", "1"): 1,
        ("lora", "all"): 0,
        ("ia3", "top:2"): 1,
        ("p-tuning-v2", "top:1"): 2,
        ("p-tuning-v2", "1"): 1,
        ("p-tuning-v2", "0,2"): 0,
        ("lora+p-tuning-v2", "top:1"): 2,
    }
    for (method, layers), expected in depths.items():
        assert (
            lowest_changed_layer(shaken(base, method, layers=layers).contribution(), 3) == expected
        )
    for method in ("prompt-tuning", "p-tuning-v2", "lora+prompt-tuning", "lora+p-tuning-v2"):
        settings = {"lora.layers": "top:1"} if "lora" in method else {}
        assert lowest_changed_layer(shaken(base, method, **settings).contribution(), 3) == 0
    assert lowest_changed_layer(Contribution(), 3) == 3


def test_what_is_kept_is_bounded(make_base: Callable[..., Base]) -> None:
    """Into memory, then into a file, then nowhere: and it reads back the same from everywhere."""
    base = make_base()
    texts = [tuple(range(5 * at, 5 * at + 5)) for at in range(1, 7)]
    size = 5 * 32 * 4
    trunk = Trunk(base, memory_bytes=2 * size, bytes_limit=4 * size)
    first = trunk.entering(1, texts)
    assert trunk.computed_tokens == 30
    second = trunk.entering(1, texts)
    assert (trunk.computed_tokens, trunk.reused_tokens) == (40, 20)
    whole = Trunk(base).entering(1, texts)
    for one, other, expected in zip(first, second, whole, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected, atol=1e-6, rtol=0)
    halved = Trunk(base, dtype="fp16", memory_bytes=0).entering(1, texts)
    for one, expected in zip(halved, whole, strict=True):
        assert torch.equal(one, expected.half().float())


def test_what_texts_begin_with_is_computed_once(make_base: Callable[..., Base]) -> None:
    texts = [(3, 4, 5, 6 + at, 7) for at in range(4)]
    trunk, apart = Trunk(make_base()), Trunk(make_base())
    together = trunk.entering(1, texts)
    assert trunk.computed_tokens == 3 + 4 * 2
    for text, hidden in zip(texts, together, strict=True):
        torch.testing.assert_close(hidden, apart.entering(1, [text])[0], atol=1e-6, rtol=0)


def test_prepared_it_is_the_same_whatever_is_asked_first(make_base: Callable[..., Base]) -> None:
    texts = [tuple(range(at, at + 3 + at % 4)) for at in range(3, 20)]
    size = 32 * 4
    trunks = [Trunk(make_base(), memory_bytes=30 * size, bytes_limit=40 * size) for _ in range(2)]
    passes: list[int] = []
    for trunk in trunks:
        trunk.prepare(1, texts, lambda: passes.append(1))
    assert len(passes) == 2
    trunks[0].entering(1, texts[-1:])  # has no place any more
    trunks[0].entering(1, [texts[0]])
    for one, other in zip(*(trunk.entering(1, texts) for trunk in trunks), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("why", ["room", "error"])
def test_a_full_disk_keeps_no_more(
    why: str, make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 0 if why == "room" else 1 << 40
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if why == "error":
        monkeypatch.setattr(Path, "open", _refused)
    texts = [tuple(range(at, at + 5)) for at in (3, 8, 13)]
    trunk = Trunk(make_base(), memory_bytes=5 * 32 * 4)
    trunk.prepare(1, texts)
    before = trunk.computed_tokens
    expected = Trunk(make_base()).entering(1, texts)
    for one, other in zip(trunk.entering(1, texts), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert trunk.computed_tokens == before + 10


def _refused(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_base_whose_pass_cant_begin_in_the_middle_goes_without(
    make_base: Callable[..., Base], make_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base()
    below = module.run_below
    monkeypatch.setattr(module, "run_below", lambda *arguments: below(*arguments) * 1.01)
    trunk = Trunk(base)
    assert not trunk.usable(1)
    adapter = shaken(base, "lora", layers="top:1")
    rows = make_rows("a")
    contributions = {"a": adapter.contribution()}
    expected, _ = token_losses(base, rows, contributions)
    losses, _ = token_losses(base, rows, contributions, trunk=trunk)
    assert torch.equal(losses, expected)
    assert trunk.computed_tokens == 0


def test_a_base_is_tried_once(
    make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many trunks it has: PPO has one a step."""
    base = make_base()
    assert Trunk(base).usable(1, shifted=True)
    monkeypatch.setattr(module, "run_below", _refused)
    assert Trunk(base).usable(1, shifted=True)
    assert Trunk(base).usable(1)
    with pytest.raises(OSError, match="space"):
        Trunk(make_base()).usable(1)  # another base is tried itself


def test_what_enters_a_layer_is_the_same_behind_a_prefix(
    architecture: str, make_base: Callable[..., Base]
) -> None:
    """At the positions behind one that no layer below sees; beyond the sliding windows of 8."""
    base = make_base(architecture)
    trunk = Trunk(base)
    text = tuple(range(5, 45))
    for layer in (1, 2):
        assert trunk.usable(layer, shifted=True)
        for tokens in (1, 20, 300):
            settings = {"virtual_tokens": tokens, "layers": str(layer)}
            pack = Pack({"it": shaken(base, "p-tuning-v2", **settings).contribution()})
            pack.add("it", text)
            with torch.no_grad():
                shifted = run_below(base, pack, layer)
            (bare,) = trunk.entering(layer, [text])
            scale = float(bare.abs().max())
            torch.testing.assert_close(shifted / scale, bare / scale, atol=1e-5, rtol=0)


def test_a_base_whose_positions_are_absolute_goes_without_behind_a_prefix(
    make_base: Callable[..., Base], make_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a base is none of those at hand whose passes can begin in the middle: one is made."""
    base = make_base()
    first = base.layers[0]
    computed = first.forward

    def told(*args: Any, **kwargs: Any) -> Any:
        positions = kwargs["position_ids"][0, :, None]
        return computed(args[0] + 0.1 * positions.sin(), *args[1:], **kwargs)

    monkeypatch.setattr(first, "forward", told)
    trunk = Trunk(base)
    assert trunk.usable(1)
    assert not trunk.usable(1, shifted=True)
    rows = make_rows("a")
    contributions = {"a": shaken(base, "p-tuning-v2", layers="top:2").contribution()}
    expected, _ = token_losses(base, rows, contributions)
    losses, _ = token_losses(base, rows, contributions, trunk=trunk)
    assert torch.equal(losses, expected)
    assert trunk.computed_tokens == 0
    contributions = {"a": shaken(base, "lora", layers="top:2").contribution()}
    token_losses(base, rows, contributions, trunk=trunk)
    assert trunk.computed_tokens == sum(len(row.ids) for row in rows)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_fewer_bits_may_round_other_positions_otherwise(
    precision: str, architecture: str, make_base: Callable[..., Base]
) -> None:
    base = make_base(architecture)
    base.hold_in(choose(precision, device="cpu", stored=torch.float32), "cpu")
    assert Trunk(base).usable(2, shifted=True)
