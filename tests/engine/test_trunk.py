"""The frozen trunk: the same losses and gradients from the layers above alone."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import onebase.engine.trunk as module
from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.adapters.methods import build_adapter
from onebase.engine.rows import TokenRow, token_losses
from onebase.engine.trunk import Trunk, alike, depth
from onebase.model.base import Base

Rows = Callable[..., list[TokenRow]]
TOP = {
    "lora": {"rank": 3, "layers": "top:1"},
    "lora+ia3": {"rank": 2, "layers": "top:2"},
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
    common = alike(list(texts)) * (len(texts) - 1)
    assert (trunk.computed_tokens, trunk.reused_tokens) == (tokens - common, tokens)
    for losses, gradients in results[1:]:
        torch.testing.assert_close(losses, results[0][0], atol=1e-5, rtol=0)
        for one, other in zip(gradients, results[0][1], strict=True):
            scale = float(other.abs().max())
            torch.testing.assert_close(one / scale, other / scale, atol=1e-5, rtol=0)


def test_how_deep_an_adapter_reaches(make_base: Callable[..., Base]) -> None:
    base = make_base()
    depths = {
        ("lora", "top:1"): 2,
        ("lora", "1"): 1,
        ("lora", "all"): 0,
        ("ia3", "top:2"): 1,
    }
    for (method, layers), expected in depths.items():
        assert depth(shaken(base, method, layers=layers).contribution(), 3) == expected
    for method in ("prompt-tuning", "p-tuning-v2", "lora+prompt-tuning"):
        settings = {"layers": "top:1"} if "lora" in method else {}
        assert depth(shaken(base, method, **settings).contribution(), 3) == 0
    assert depth(Contribution(), 3) == 3


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
    halved = Trunk(base, kept="fp16", memory_bytes=0).entering(1, texts)
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
