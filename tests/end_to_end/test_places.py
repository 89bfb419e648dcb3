"""Directories that are not ours, or not ours alone: nothing is written there, and no training ends because of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import sdk
from daemon.cli import cli
from daemon.server import serve
from daemon.settings import DaemonSettings
from sdk import platform
from sdk.errors import StoreError
from sdk.location import make_store
from tests.builders import make_run

STRANGER = 12345
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to somebody else")


def tree(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


@needs_root
@pytest.mark.parametrize("how", ["owner", "group", "others"])
def test_a_store_that_others_write_is_only_read(store: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """It can be read; no daemon serves it, `rm` refuses with the cure, and a run goes to another store, which is said."""
    make_store(str(store))
    make_run(str(store), "old", [{"x": 1.0}])
    if how == "owner":
        os.chown(store, STRANGER, STRANGER)
    else:
        os.chmod(store, 0o770 if how == "group" else 0o707)
    before = tree(store)
    monkeypatch.setenv("TMPDIR", str(store.parent / f"{store.name}-elsewhere"))
    assert sdk.open_store(store).run("old").series("x").value.tolist() == [1.0]
    with pytest.raises(StoreError):
        serve(str(store), DaemonSettings())
    refused = CliRunner().invoke(cli, ["--dir", str(store), "rm", "old"])
    assert refused.exit_code == 1
    assert "STEPD_TRUST_STORE=1" in refused.stderr
    assert tree(store) == before


def wrong_places(directory: Path) -> dict[str, Callable[[], object]]:
    """What may stand where a private directory should be."""
    target = directory.with_name("target")
    target.mkdir(mode=0o700)
    return {
        "open to others": lambda: (directory.mkdir(), directory.chmod(0o755)),
        "a link": lambda: directory.symlink_to(target),
        "a file": directory.touch,
        "a dangling link": lambda: directory.symlink_to("/nowhere"),
        "somebody else's": lambda: (directory.mkdir(0o700), os.chown(directory, STRANGER, STRANGER)),
    }


KINDS = ["open to others", "a link", "a file", "a dangling link", pytest.param("somebody else's", marks=needs_root)]


@pytest.mark.parametrize("kind", KINDS)
def test_shared_memory_that_is_not_private(store: Path, tmp_path: Path, kind: str) -> None:
    """Rings are not made in a directory that others could have prepared: the run keeps its records in private memory."""
    directory = tmp_path / platform.own_name()
    wrong_places(directory)[kind]()
    with pytest.raises(StoreError, match="not a private directory"):
        platform.shared_directory(str(tmp_path))
    settings = {"shared_memory_dir": str(tmp_path), "autostart": False, "silent": True}
    run = sdk.init(id="r", settings=settings)
    for n in range(100):
        run.log({"x": n})
    run.finish()
    assert sdk.open_store(store).run("r").series("x").value.tolist() == list(range(100))
    assert tree(tmp_path / "target") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_runtime_directory_that_is_not_private(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """No socket is looked for in a directory of others: the run goes on through its spool and says nothing worse."""
    directory = tmp_path / platform.own_name()
    wrong_places(directory)[kind]()
    monkeypatch.setattr(platform, "runtime_directory", lambda: platform.shared_directory(str(tmp_path)))
    run = sdk.init(id="r", settings={"silent": True})
    for n in range(100):
        run.log({"x": n})
    run.finish()
    found = sdk.open_store(store).run("r")
    assert found.series("x").value.tolist() == list(range(100))
    assert found.state == "finished"
    assert tree(tmp_path / "target") == []
    status = CliRunner().invoke(cli, ["--dir", str(store), "status"])
    assert status.exit_code == 1
    assert "not a private directory" in status.stderr
