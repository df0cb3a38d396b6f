"""The source keeps to its own rules: which way imports point, file names and sizes, errors."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "onebase"
# Lowest first. A package imports itself and what stands on a lower line, nothing beside it.
LAYERS = (
    {"language"},
    {"errors", "quantity"},
    {"data"},
    {"model"},
    {"adapters"},
    {"runs"},
    {"engine"},
    {"training"},
    {"search", "planning", "align"},
    {"compare", "serving", "demo", "export"},
    {"learn"},
    {"cli"},
    {"onebase"},  # what `import onebase` offers
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
GRAB_BAGS = {"common", "helper", "helpers", "misc", "util", "utils"}
# Where a broad `except` is right, and says why in the code: at the outermost edge (of a thread, too),
# around a library that raises nothing narrower, and around a function of the user's.
BROAD = {
    "cli/app.py",
    "model/tokenizer.py",
    "align/user_function.py",
    "engine/thread.py",
    "engine/lean/team.py",
    "serving/request_log.py",
}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def package_of(file: Path) -> str:
    first = file.relative_to(SOURCE).parts[0]
    return "onebase" if first == "__init__.py" else first.removesuffix(".py")


def imported_packages(tree: ast.AST) -> Iterator[str]:
    """The onebase packages that a module imports, at its top or later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, *rest = name.split(".")
            if top == "onebase":
                yield rest[0] if rest and rest[0] in LEVEL else "onebase"


def broad_excepts(tree: ast.AST) -> Iterator[int]:
    """The lines where every error is caught."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(
                kind is None or ast.unparse(kind) in {"Exception", "BaseException"}
                for kind in caught
            ):
                yield node.lineno


def wrong_imports(package: str, tree: ast.AST) -> list[str]:
    return [
        found
        for found in imported_packages(tree)
        if found != package and LEVEL[found] >= LEVEL[package]
    ]


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_point_one_way(file: Path) -> None:
    package = package_of(file)
    assert package in LEVEL, f"give {package} its place in LAYERS"
    assert wrong_imports(package, ast.parse(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("package", "line", "wrong"),
    [
        ("engine", "from onebase.adapters.lora import Lora", []),
        ("engine", "import onebase.engine.pack", []),
        ("engine", "from onebase.training.loop import run", ["training"]),
        ("engine", "def late():\n    from onebase import training", ["training"]),
        ("engine", "from onebase import Job", ["onebase"]),
        ("engine", "import onebase", ["onebase"]),
        ("engine", "import onebase.cli.app", ["cli"]),
        ("compare", "import onebase.serving.app", ["serving"]),
        ("cli", "import onebase.learn", []),
        ("language", "import onebase.errors, os", ["errors"]),
    ],
)
def test_a_wrong_import_is_seen(package: str, line: str, wrong: list[str]) -> None:
    assert wrong_imports(package, ast.parse(line)) == wrong


def test_no_file_is_a_grab_bag() -> None:
    folders = [ROOT / name for name in ("src", "tests", "bench", "examples")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert [file for file in files if GRAB_BAGS & {file.stem, file.parent.name}] == []


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {
        str(file.relative_to(SOURCE)): len(file.read_text(encoding="utf-8").splitlines())
        for file in modules()
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_broad_except() -> None:
    found = {
        f"{name}:{line}"
        for file in modules()
        for line in broad_excepts(ast.parse(file.read_text(encoding="utf-8")))
        if (name := file.relative_to(SOURCE).as_posix()) not in BROAD
    }
    assert found == set()


@pytest.mark.parametrize(
    ("kind", "count"),
    [("", 1), (" Exception", 1), (" (OSError, BaseException)", 1), (" OSError", 0)],
)
def test_a_broad_except_is_seen(kind: str, count: int) -> None:
    tree = ast.parse(f"try:\n    pass\nexcept{kind}:\n    pass")
    assert len(list(broad_excepts(tree))) == count


ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
# A row of the table "Where is …": a question, a file and a name in it.
ROWS = re.findall(r"^\| (.+\?) \| `(.+?)` \| `(.+?)` \|$", ARCHITECTURE, flags=re.MULTILINE)


def defined_in(file: Path) -> set[str]:
    """The functions, classes (with their methods) and constants of a file."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{part.name}"
                for part in node.body
                if isinstance(part, ast.FunctionDef)
            }
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {ast.unparse(target) for target in targets}
    return names


def test_the_table_has_two_dozen_questions() -> None:
    assert len(ROWS) >= 24
    assert len({question for question, _, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("question", "file", "name"), ROWS)
def test_what_the_table_names_is_there(question: str, file: str, name: str) -> None:
    assert name in defined_in(SOURCE / file), question


def test_the_walk_names_files_that_are_there() -> None:
    walk = ARCHITECTURE.partition("## Folders")[0]
    files = re.findall(r"`(?:src/onebase/)?([\w/]+\.py)`", walk)
    assert len(files) > 12
    assert [file for file in files if not (SOURCE / file).exists()] == []


def test_the_folders_are_those_of_the_source() -> None:
    listed = re.findall(
        r"`(\w+)/`", ARCHITECTURE.partition("## Folders")[2].partition("## Where")[0]
    )
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert set(listed) - {"lean"} == folders
