"""Both READMEs and the examples run, on a tiny base in place of the embedded one."""

import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from onebase.adapters.methods import ALIASES, METHODS
from onebase.cli.app import main
from onebase.training.job import read_jobs
from onebase.training.options import TrainOptions

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README_zh.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HERE_DOCUMENT = re.compile(r"^cat > (\S+) <<'EOF'\n(.*?)^EOF\n", re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
COMMENT = re.compile(r"(^|[ \t]+)# .*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    language: str
    text: str


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[Block]:
    return [Block(language, text) for language, text in BLOCK.findall(read(name))]


def headings(name: str) -> list[str]:
    return re.findall(r"^(#+) ", BLOCK.sub("", read(name)), re.MULTILINE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A cache of base models whose smollm2-135m is a tiny random Llama."""
    root = tmp_path_factory.mktemp("cache")
    shutil.copytree(tiny_folder, root / "models" / "smollm2-135m")
    return root


@pytest.fixture
def desk(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, with the tiny base at hand."""
    monkeypatch.setenv("ONEBASE_CACHE", str(cache))
    monkeypatch.delenv("ONEBASE_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[str]]]:
    """The servers that a text starts; each must end cleanly when it is told to."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for server in started:
        server.terminate()
        server.communicate(timeout=60)
        assert server.returncode == 0


def serve(words: list[str], servers: list[subprocess.Popen[str]]) -> str:
    """Start `onebase serve …` at a free port; returns its address."""
    code = "from onebase.cli.app import main; main()"
    command = [sys.executable, "-c", code, *words[1:], "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    servers.append(server)
    assert server.stdout is not None
    url: str = json.loads(server.stdout.readline())["url"]
    return url


def run_bash(
    text: str, monkeypatch: pytest.MonkeyPatch, servers: list[subprocess.Popen[str]], url: str
) -> str:
    """Write the here-documents and run the `onebase` and `curl` lines; any other line is an error.

    Returns the address of the server, which the text calls ADDRESS.
    """
    for name, content in HERE_DOCUMENT.findall(text):
        Path(name).write_text(content, encoding="utf-8")
    for line in HERE_DOCUMENT.sub("", text).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] == "make":  # test_make_targets_exist looks at those
            continue
        if words[0] == "curl":
            command = [word.replace(ADDRESS, url) for word in words]
            subprocess.run([*command, "--fail"], check=True, stdout=subprocess.DEVNULL)
            continue
        assert words[0] == "onebase", f"a line that nothing checks: {line}"
        if words[1] == "serve":
            url = serve(words, servers)
            continue
        monkeypatch.setattr(sys, "stdin", io.StringIO("Where is my lamp?\n/quit\n"))
        with pytest.raises(SystemExit) as ended:
            main(words[1:])
        assert ended.value.code == 0, line
    return url


@pytest.mark.parametrize("name", READMES)
def test_every_block_runs(
    name: str,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    servers: list[subprocess.Popen[str]],
) -> None:
    namespace: dict[str, object] = {}
    url = ADDRESS
    for number, block in enumerate(blocks(name)):
        if block.language == "bash":
            url = run_bash(block.text, monkeypatch, servers, url)
        elif block.language == "yaml":
            (desk / "tasks.yaml").write_text(block.text, encoding="utf-8")
            tasks = read_jobs(desk / "tasks.yaml")
            assert tasks.base == "smollm2-135m"
            for job in tasks.jobs:
                job.options()
        else:
            assert block.language == "python", f"block {number} is in no language that is checked"
            text = block.text.replace(ADDRESS, url)
            exec(compile(text, f"{name}, block {number}", "exec"), namespace)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    named = {
        target
        for name in READMES
        for block in blocks(name)
        for target in re.findall(r"^make (\S+)", block.text, re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


def test_both_languages_have_the_same_blocks_and_headings() -> None:
    first, second = (
        [Block(block.language, COMMENT.sub("", block.text)) for block in blocks(name)]
        for name in READMES
    )
    assert len(first) > 5
    assert first == second
    assert headings(READMES[0]) == headings(READMES[1])


@pytest.mark.parametrize("name", [*READMES, "docs/deployment.md", "docs/deployment.zh.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = BLOCK.sub("", read(name))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors
        else:
            assert (ROOT / name).parent.joinpath(link).is_file()


@pytest.mark.parametrize("name", READMES)
def test_every_dependency_has_its_reason(name: str) -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    packages = {re.split(r"[<>=!~;\[ ]", item)[0] for item in project["dependencies"]}
    listed = re.findall(r"^\| `([\w-]+)` \| [^|]+ \|$", read(name), re.MULTILINE)
    assert packages <= set(listed)


@pytest.mark.parametrize("name", READMES)
@pytest.mark.parametrize("method", METHODS)
def test_methods_stand_with_their_options_and_defaults(name: str, method: str) -> None:
    found = re.search(rf"^\| `{method}`.*$", read(name), re.MULTILINE)
    assert found
    row = found[0]
    above = {"p-tuning": "prompt-tuning", "qlora": "lora"}.get(method)
    inherited = METHODS[above].options.model_fields if above else {}
    for option, field in METHODS[method].options.model_fields.items():
        if option in inherited:  # "as above"
            continue
        shown = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        expected = option if field.default is None else f"{option}={shown.lower()}"
        assert f"`{expected}`" in row
    rate = re.search(r"\| ([\d.]+e-\d+) \|", row)
    assert rate
    assert float(rate[1]) == METHODS[method].learning_rate


@pytest.mark.parametrize("name", READMES)
def test_aliases_are_named(name: str) -> None:
    text = read(name)
    assert [alias for alias in ALIASES if f"`{alias}`" not in text] == []


@pytest.mark.parametrize("name", READMES)
def test_training_options_stand_with_their_defaults(name: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", read(name), re.MULTILINE))
    for option, field in TrainOptions.model_fields.items():
        default = field.default
        shown = f"{default:g}" if type(default) in (int, float) else str(default)
        if default is None:  # the method's own
            assert rows[option]
        else:
            assert rows[option] == shown.lower(), option


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_example_runs(
    example: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40
    monkeypatch.setattr(sys, "argv", [str(example), str(cache / "models" / "smollm2-135m")])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
