"""Rules about the code itself, checked by a machine so that nobody has to remember them.

Floors between packages are import-linter's (pyproject.toml); style is ruff's. What is here needs a look at the whole tree:
its documents, its sizes, what it opens for writing, what it imports.
"""

from __future__ import annotations

import ast
import importlib
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "sdk").rglob("*.py"), *(ROOT / "daemon").rglob("*.py"), *ROOT.glob("stepd.py")])
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

LINES_MAX = 600
FUNCTION_LINES_MAX = 70

# name -> why it is longer than LINES_MAX.
LONG_FILES = {
    "daemon/ingest.py": "not split yet",
}

# name -> why it is longer than FUNCTION_LINES_MAX.
LONG_FUNCTIONS = {
    "sdk/journal/appender.py:open_journal": "closures over cells: the hot path saves an attribute look-up per name",
}

# Who writes to the file system without `sdk.files`, and why no test needs to fail that.
WRITERS = {
    "sdk/files/": "is the layer",
    "sdk/platform/": "shared memory, locks and /proc are not files in the sense of `sdk.files`",
    "sdk/journal/": "rings, likewise",
    "sdk/_spawn.py": "the mark of a user's `stop` lies beside the sockets, not in a store",
    "daemon/server.py": "its log is logging's own file",
}

# Who may print, and where to.
PRINTERS = ("daemon/commands/", "sdk/_greeting.py")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of each call whose function is a plain or dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Top-level packages that are imported absolutely, at any depth of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    """A docstring whose first line is a sentence; a package's `__init__` has its charter there."""
    text = ast.get_docstring(tree_of(path))
    assert text, f"{name_of(path)} has no docstring"
    assert len(text.splitlines()[0]) > 10


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_every_test_says_what_it_proves(path: Path) -> None:
    """The docstring of a test states the fact."""
    silent = [
        node.name
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert not silent


def test_nobody_prints() -> None:
    """stdout belongs to the user's program; only the commands print, and the greeting writes to stderr."""
    found = [
        f"{name_of(path)}:{call.lineno}"
        for path in SOURCES
        if not name_of(path).startswith(PRINTERS)
        for name, call in calls_of(tree_of(path))
        if name in ("print", "pprint", "sys.stdout.write")
    ]
    assert not found


def test_no_bare_except() -> None:
    """It would swallow KeyboardInterrupt."""
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not found


@pytest.mark.parametrize(
    ("package", "doors"), [("zmq", {"sdk/transport.py", "daemon/ingest.py"}), ("lz4", {"sdk/compression.py"})]
)
def test_foreign_packages_have_few_doors(package: str, doors: set[str]) -> None:
    """Sockets and codecs are each behind one module, so that the rest can be tested without them."""
    users = {name_of(path) for path in SOURCES if package in imports_of(tree_of(path))}
    assert users <= doors


def test_inside_sdk_imports_are_relative() -> None:
    """The package is also loaded as `stepd`; an absolute import would load it twice."""
    found = [
        name_of(path)
        for path in SOURCES
        if name_of(path).startswith("sdk/") and {"sdk", "stepd"} & set(imports_of(tree_of(path)))
    ]
    assert not found


def writes(name: str, call: ast.Call) -> bool:
    """Whether a call opens a file for writing, as far as its text tells."""
    text = ast.unparse(call)
    if name == "os.open":
        return bool(re.search(r"O_(RDWR|WRONLY|CREAT|TRUNC|APPEND)", text))
    if name in ("open", "io.open") or name.endswith(".open"):
        mode = [
            a.value
            for a in [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
            if isinstance(a, ast.Constant)
        ]
        return any(isinstance(m, str) and set(m) & set("wax+") for m in mode)
    return name.endswith((".write_text", ".write_bytes", "FileHandler")) or name in (
        "shutil.copyfile",
        "shutil.copy",
        "shutil.move",
        "os.mkfifo",
    )


def test_files_are_written_through_one_layer() -> None:
    """So that a test can fail the N-th operation, every write to the store goes through `sdk.files`."""
    found = [
        f"{name_of(path)}:{call.lineno}: {ast.unparse(call)}"
        for path in SOURCES
        if not name_of(path).startswith(tuple(WRITERS))
        for name, call in calls_of(tree_of(path))
        if writes(name, call)
    ]
    assert not found


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines without the docstring: a parameter that is explained costs nobody anything."""
    first = function.body[0]
    text = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0
    return (function.end_lineno or 0) - function.lineno + 1 - text


def test_sizes() -> None:
    """A file or function that outgrows a reader's head needs a reason, written here."""
    long_files = {name_of(path) for path in SOURCES if path.read_text(encoding="utf-8").count("\n") > LINES_MAX}
    assert long_files <= set(LONG_FILES)
    long_functions = {
        f"{name_of(path)}:{node.name}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and lines_of(node) > FUNCTION_LINES_MAX
    }
    assert long_functions <= set(LONG_FUNCTIONS)


def test_importing_sdk_loads_nothing() -> None:
    """A trainer pays for what it uses: in a fresh interpreter none of these came along."""
    heavy = [
        "zmq",
        "lz4",
        "msgpack",
        "numpy",
        "dataclasses",
        "logging",
        "asyncio",
        "json",
        "subprocess",
        "multiprocessing",
        "typing",
    ]
    code = f"import sys; before = set(sys.modules); import sdk; print(*sorted((set(sys.modules) - before) & set({heavy!r})))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


# -- documents -------------------------------------------------------------------------------------------------------------

# document -> the modules whose constants it quotes.
FORMATS = {
    "segment.md": ("sdk.segment.format", "sdk.limits"),
    "journal.md": ("sdk.journal.format", "sdk.limits"),
    "wire.md": ("sdk.wire.codec", "sdk.wire.messages", "sdk.limits"),
}


def tables_of(document: str) -> list[list[list[str]]]:
    """The tables of a document as rows of cells, headings first."""
    path = ROOT / "docs" / document
    if not path.exists():
        pytest.skip(f"docs/{document} is not written yet")
    found: list[list[list[str]]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            if not set("".join(cells)) <= set("-: "):
                found[-1].append(cells)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


@pytest.mark.parametrize("document", FORMATS)
def test_documents_quote_the_constants(document: str) -> None:
    """Each row `| NAME | number |` of a format's page is the constant of that name."""
    modules = [importlib.import_module(name) for name in FORMATS[document]]
    wrong = []
    for table in tables_of(document):
        for row in table:
            if (
                len(row) < 2
                or not re.fullmatch(r"[A-Z][A-Z0-9_]+", row[0])
                or not re.fullmatch(r"[0-9][0-9_]*|0x[0-9a-fA-F]+", row[1])
            ):
                continue
            values = [getattr(module, row[0]) for module in modules if hasattr(module, row[0])]
            if values[:1] != [int(row[1], 0)]:
                wrong.append(f"{document}: {row[0]} is {row[1]} there and {values} in the code")
    assert not wrong


SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8}


def layout_of(table: list[list[str]]) -> list[tuple[int, int]]:
    """(offset, size) of each field of an `| offset | type | field |` table."""
    fields = []
    for offsets, types, *_ in table[1:]:
        for offset, kind in zip(offsets.split(","), types.split(","), strict=False):
            match = re.match(r"(\d+) bytes", kind.strip())
            fields.append((int(offset), int(match[1]) if match else SIZES[kind.strip()]))
        if "," in types and "," not in offsets:  # `| 8 | u16, u16 |`: the second follows the first
            kinds = [kind.strip() for kind in types.split(",")]
            fields[-1:] = [(int(offsets) + sum(SIZES[k] for k in kinds[:i]), SIZES[k]) for i, k in enumerate(kinds)]
    return fields


def layout_of_struct(packing: struct.Struct) -> list[tuple[int, int]]:
    fields, offset = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", packing.format.strip("<")):
        size = int(count) if code == "s" else struct.calcsize(f"<{code}")
        for _ in range(1 if code == "s" else int(count or 1)):
            fields.append((offset, size))
            offset += size
    return fields


@pytest.mark.parametrize("document", FORMATS)
def test_documents_draw_the_layouts(document: str) -> None:
    """Each `| offset | type | field |` table is, field by field, one of the structs that the code packs with."""
    structs = {
        "segment.md": [
            ("sdk.segment.format", "FILE_HEADER"),
            ("sdk.segment.format", "BLOCK_HEADER"),
            ("sdk.segment.format", "TRAILER"),
        ],
        "journal.md": [("sdk.record", "HEADER"), ("sdk.journal.format", "STATIC")],
        "wire.md": [("sdk.wire.codec", "HEADER"), ("sdk.wire.codec", "_HEADER"), ("sdk.wire.codec", "_HEAD")],
    }[document]
    known = [
        layout_of_struct(found)
        for module, name in structs
        if isinstance(found := getattr(importlib.import_module(module), name, None), struct.Struct)
    ]
    tables = [table for table in tables_of(document) if [c.lower() for c in table[0][:2]] == ["offset", "type"]]
    for table in tables:
        assert layout_of(table) in known, f"{document}: the table that begins {table[1]} is none of {structs}"


def test_documents_name_the_kinds() -> None:
    """Kinds of blocks and of records are the same numbers in docs/segment.md and in the code."""
    module = importlib.import_module("sdk.segment.format")
    rows = [row for table in tables_of("segment.md") if table[0][:2] == ["kind", "name"] for row in table[1:]]
    assert {name: int(number, 0) for number, name, *_ in rows} == {
        name.removeprefix("KIND_"): value
        for name, value in vars(module).items()
        if name.startswith("KIND_") and name != "KIND_SKIPPABLE"
    }


def test_no_loop_stands_in_a_block_that_holds_a_lock() -> None:
    """CPython 3.13.0 leaves the lock of a `with` held when a signal handler raises at the jump back of a loop inside it.

    The loop stands in a function of its own, which the block calls.
    """
    found = []
    for path in sorted((ROOT / "sdk").rglob("*.py")):
        for block in ast.walk(ast.parse(path.read_text())):
            if not isinstance(block, ast.With):
                continue
            names = [ast.unparse(item.context_expr) for item in block.items]
            if not any(name.endswith(("lock", "_progress")) for name in names):
                continue
            loops = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)
            found += [f"{path}:{inner.lineno}" for inner in ast.walk(block) if isinstance(inner, loops)]
    assert not found
