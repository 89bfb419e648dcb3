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
LONG_FILES: dict[str, str] = {}

# name -> why it is longer than FUNCTION_LINES_MAX.
LONG_FUNCTIONS = {
    "sdk/journal/appender.py:open_journal": "closures over cells: the hot path saves an attribute look-up per name",
}

# What reaches the disk: any mention of these names counts, called or handed on.
DISK_MODULES = ("shutil", "tempfile", "mmap", "glob", "pathlib", "fileinput", "io")
DISK_NAMES = {
    "open",
    *("os." + name for name in (
        "access chmod chown copy_file_range fchmod fdatasync fstat fsync ftruncate fwalk link listdir lstat makedirs mkdir "
        "mkfifo mknod open posix_fallocate pread preadv pwrite pwritev read readlink remove removedirs rename renames "
        "replace rmdir scandir sendfile stat statvfs symlink truncate unlink utime walk write"
    ).split()),
    *("os.path." + name for name in (
        "exists getatime getctime getmtime getsize isdir isfile islink ismount lexists realpath samefile"
    ).split()),
}  # fmt: skip
NO_DISK = {"shutil.get_terminal_size", "io.BytesIO"}

# Who reaches it without `sdk.files`: file, or directory with a slash -> names, and why no test needs to fail that.
TOUCHES: dict[str, tuple[str, str]] = {
    "sdk/files/": ("*", "is the layer"),
    "sdk/platform/": (
        "*",
        "shared memory, locks, sockets' directories and /proc are not files in the sense of the layer",
    ),
    "sdk/journal/": ("*", "rings, likewise"),
    "sdk/_aside.py": ("os.pread", "rings, likewise"),
    "sdk/_spool.py": ("os.unlink", "rings, likewise"),
    "sdk/query/why/stacks.py": (
        "os.fstat shutil.which",
        "the user's own source files, which stacks name; where py-spy is",
    ),
    "sdk/query/sql/query.py": ("tempfile.TemporaryDirectory", "where DuckDB keeps what does not fit into memory"),
    "sdk/reader/state.py": ("os.path.exists", "rings, likewise"),
    "daemon/ingest/dead.py": ("os.path.exists os.unlink", "rings"),
    "daemon/ingest/rings.py": ("os.fstat os.lstat", "rings, likewise"),
    "daemon/ingest/router.py": (
        "os.lstat os.unlink os.listdir os.rename",
        "the socket's own file; /proc, to count descriptors",
    ),
    "daemon/store/recovery.py": ("os.stat", "the lock's file"),
    "daemon/commands/output.py": (
        "open os.chmod os.path.exists os.path.isfile os.path.realpath os.replace os.stat os.unlink",
        "writes where its user says",
    ),
    "daemon/commands/report.py": ("os.path.isdir os.path.realpath", "likewise"),
    "daemon/commands/media_files.py": (
        "os.makedirs os.path.lexists os.path.realpath os.rename shutil.rmtree",
        "likewise",
    ),
    "daemon/commands/values.py": ("os.makedirs os.path.isdir", "likewise"),
    "sdk/reader/media.py": ("open os.path.isdir os.replace os.unlink", "saves a value where its user says"),
    "daemon/importing/source.py": (
        "glob.glob glob.has_magic os.stat os.walk os.path.isdir os.path.islink os.path.lexists os.path.realpath",
        "finds and looks at the files that are imported, which are the user's own",
    ),
    "daemon/importing/tensorboard.py": (
        "open os.fstat os.listdir os.open os.pread os.path.isdir os.path.isfile os.path.realpath",
        "reads them",
    ),
    "daemon/doctor/": ("*", "looks at the machine itself; what it writes to measure is its own, and gone afterwards"),
    "daemon/observe/gpu.py": ("os.path.exists", "/dev, to see whose accelerators there are"),
    "daemon/observe/ends.py": ("open", "/proc"),
    "daemon/observe/machine.py": ("open os.path.exists os.stat", "/proc and /sys"),
    "daemon/observe/processes.py": ("open os.listdir", "/proc"),
    "daemon/server.py": ("logging.handlers.RotatingFileHandler", "its log is logging's own file"),
    "sdk/_spawn.py": (
        "os.path.exists os.open os.unlink",
        "the mark of a user's `stop` lies beside the sockets, not in a store",
    ),
    "sdk/transport.py": ("os.open", "opens /dev/null, to see whether descriptors are left"),
    "sdk/location.py": ("os.access os.path.isfile tempfile.gettempdir", "looks for a store where none is known yet"),
    "sdk/_api.py": (
        "os.listdir tempfile.gettempdir tempfile.mkdtemp",
        "counts runs for the greeting; a store to fall back on",
    ),
    "sdk/_about.py": ("tempfile.mkdtemp", "the user's own files, where the store takes none"),
    "sdk/_artifacts.py": (
        "os.path.isdir os.path.isfile",
        "the user's own files, which are told apart by what they are",
    ),
    "sdk/artifacts/building.py": (
        "open os.open os.path.exists os.path.isdir os.path.isfile os.path.islink os.path.realpath os.walk",
        "likewise; and new_file() gives a real file, which only the user's code writes",
    ),
    "sdk/artifacts/fetching.py": ("os.path.islink os.path.realpath", "sees where links in the user's directory lead"),
    "sdk/artifacts/using.py": (
        "os.path.isdir os.path.islink os.path.lexists os.path.realpath os.unlink",
        "checkout() removes from the user's directory what is not in the artifact",
    ),
    "daemon/observe/code.py": ("os.path.isdir os.path.realpath", "looks at the user's own directories"),
    "daemon/observe/git.py": ("os.read", "reads a pipe"),
    "daemon/importing/wandb.py": (
        "os.path.isdir os.path.islink os.path.realpath",
        "looks at the files that are imported, likewise",
    ),
    "daemon/importing/wandb_media.py": (
        "open os.path.getsize os.path.isfile os.path.realpath",
        "finds and reads the media that are imported, likewise",
    ),
    "daemon/sync/targets/wandb/": ("tempfile.mkdtemp", "where W&B's package keeps what is sent; gone afterwards"),
    "daemon/sync/work.py": ("os.read", "reads a pipe"),
    "daemon/observe/packages.py": ("os.listdir os.open", "reads what installers left in the user's environment"),
    "sdk/_files.py": (
        "glob open os.path.exists os.path.isdir os.path.isfile os.path.lexists os.walk",
        "finds the user's own files; hands a copy out",
    ),
    "sdk/runfiles.py": (
        "os.fstat os.open os.path.realpath os.read os.scandir",
        "reads the user's own files by links, and those of a run without following any",
    ),
    "sdk/reader/kept.py": ("open os.makedirs os.replace os.unlink os.utime", "copies files where its user says"),
    "sdk/_config.py": ("open", "the user's configuration file"),
    "sdk/values/sources.py": ("open", "the user's own files, which are read where they are named"),
    "sdk/_tap.py": ("io.TextIOWrapper", "asks whether a stream has a descriptor of its own"),
    "sdk/_strangers.py": (
        "os.fstat os.open os.pread os.readlink mmap.mmap",
        "the file that the program's stdout is; memory shared with forked children",
    ),
    "sdk/_launcher.py": ("open os.path.isdir os.path.isfile", "looks for git's HEAD, for a project's name"),
    "daemon/sync/targets/mlflow_files.py": (
        "open os.mkdir os.path.getsize os.replace os.unlink os.walk tempfile.TemporaryDirectory",
        "drafts for mlflow's client, which takes names of files; what matters is on the server",
    ),
    "daemon/sync/targets/parquet/objects.py": (
        "tempfile.TemporaryFile",
        "a draft that has no name; what matters is in the bucket",
    ),
    "stepd.py": ("os.path.realpath", "asks whether a package on sys.path is ours"),
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
    ("package", "doors"), [("zmq", {"sdk/transport.py", "daemon/ingest/router.py"}), ("lz4", {"sdk/compression.py"})]
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


def disk_names_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of all that reaches the disk, as far as the text tells: an import by name counts as well."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            name = ast.unparse(node)
            is_known = name in DISK_NAMES or (name.partition(".")[0] in DISK_MODULES and "." in name)
            if (is_known or name.endswith("FileHandler")) and not any(name.startswith(one) for one in NO_DISK):
                yield name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "os.path", *DISK_MODULES):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                (alias.name, node.lineno)
                for alias in node.names
                if alias.asname and alias.name in ("os", *DISK_MODULES)
            )


def test_the_disk_is_reached_through_one_layer() -> None:
    """So that a test can fail the N-th operation or replay any crash, all that a store is goes through `sdk.files`."""
    found, used = [], set()
    for path in SOURCES:
        place = next((place for place in TOUCHES if name_of(path).startswith(place)), None)
        allowed = TOUCHES[place][0].split() if place else []
        for name, line in disk_names_of(tree_of(path)):
            if name in allowed or "*" in allowed:
                used.add((place, name if name in allowed else "*"))
            else:
                found.append(f"{name_of(path)}:{line}: {name}")
    assert not found
    stale = {(place, name) for place, (names, _) in TOUCHES.items() for name in names.split()} - used
    assert not stale, "exceptions that nobody needs any more"


def test_the_rule_about_the_disk_sees_through_disguise() -> None:
    """Called, handed on, imported by name or under another one."""
    for text in ("os.unlink(x)", "map(os.stat, x)", "from os import open", "import os as o", "open(x)", "shutil.rmtree(x)",
                 "import pathlib as p", "logging.FileHandler(x)"):  # fmt: skip
        assert list(disk_names_of(ast.parse(text))), text
    for text in ("os.path.join(x)", "files.open(x)", "shutil.get_terminal_size()", "os.getpid()", "self.open"):
        assert not list(disk_names_of(ast.parse(text))), text


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
    "segment.md": ("sdk.segment.format", "sdk.segment.blobs", "sdk.limits"),
    "journal.md": (
        "sdk.journal.format",
        "sdk.journal.arena",
        "sdk.journal.asking",
        "sdk.journal.waiting",
        "sdk.limits",
    ),
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
            ("sdk.segment.format", "SEAL"),
            ("sdk.segment.format", "BLOCK_HEADER"),
            ("sdk.segment.format", "TRAILER"),
        ],
        "journal.md": [("sdk.record", "HEADER"), ("sdk.journal.format", "STATIC"), ("sdk.journal.format", "CHUNK")],
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
