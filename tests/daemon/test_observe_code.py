from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.observe import code
from daemon.observe.packages import conda_packages, entry_point, requirements
from tests.daemon.test_observe_git import run_git


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one commit, a script in it that has changed, and an environment with two packages."""
    root = tmp_path / "work"
    (root / "src").mkdir(parents=True)
    (root / "src" / "train.py").write_text("a = 1\n")
    run_git(root, "init", "-q", "-b", "main")
    run_git(root, "add", ".")
    run_git(root, "commit", "-qm", "first")
    (root / "src" / "train.py").write_text("a = 2\n")
    install(tmp_path / "site", "torch", "2.4.0")
    install(tmp_path / "site", "My_Tool", "1.0", {"url": f"file://{root}", "dir_info": {"editable": True}})
    return tmp_path


def install(site: Path, name: str, version: str, origin: dict[str, Any] | None = None) -> Path:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nVersion: 0\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    return info


def context_of(project: Path, **kept: bool) -> dict[str, Any]:
    script = project / "work" / "src" / "train.py"
    return {
        "cwd": str(project / "work"),
        "program": {"kind": "script", "name": "src/train.py", "path": str(script)},
        "python": {"path": [str(project / "site"), "/nowhere"], "prefix": str(project)},
        "kept": {"git": True, "diff": True, "code": True, **kept},
    }


def files_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_everything_that_is_there(project: Path) -> None:
    """Facts, a patch, the packages, and the script as it was run."""
    directory = project / "files"
    facts = code.describe(context_of(project), str(directory))
    assert (
        facts["git"]["dirty"] is True and facts["git"]["branch"] == "main" and facts["git"]["files"] == ["diff.patch"]
    )
    assert facts["packages"] == {"count": 2, "file": "requirements.txt"}
    assert facts["code"] == {"file": "code/src/train.py", "size": 6}
    assert files_in(directory) == ["code/src/train.py", "diff.patch", "requirements.txt"]
    assert (directory / "code" / "src" / "train.py").read_text() == "a = 2\n"
    assert (directory / "requirements.txt").read_text() == f"-e {project}/work  # My_Tool==1.0\ntorch==2.4.0\n"
    assert (directory / "diff.patch").stat().st_mode & 0o777 == 0o600


def test_what_is_not_wanted_is_not_kept(project: Path) -> None:
    """No git, no changes, no script; and nothing at all without facts of the trainer."""
    directory = project / "files"
    assert code.describe({}, str(directory)) == {} and not directory.exists()
    facts = code.describe(context_of(project, git=False, code=False), str(directory))
    assert set(facts) == {"packages"} and files_in(directory) == ["requirements.txt"]
    facts = code.describe(context_of(project, diff=False, code=False), str(directory))
    assert facts["git"]["dirty"] is True and files_in(directory) == ["requirements.txt"]


def test_a_store_inside_the_project_is_no_change_of_it(project: Path) -> None:
    """What lies in the store is not named among the files that git does not have."""
    directory = project / "work" / ".stepd" / "runs" / "a41f" / "files"
    directory.mkdir(parents=True)
    (directory.parent / "history.seg").write_text("")
    (project / "work" / "new.py").write_text("")
    facts = code.describe(context_of(project), str(directory))
    assert facts["git"].get("untracked") == ["new.py"], facts["git"]
    assert facts["git"]["untracked_count"] == 1


def test_a_script_that_is_gone(project: Path) -> None:
    """The trainer and its script may be gone by now: the facts say what was not found."""
    context = context_of(project)
    context["program"]["path"] = str(project / "work" / "gone.py")
    facts = code.describe(context, str(project / "files"))
    assert "gone.py" in facts["code"]["why"] and facts["git"]["commit"]


def test_a_script_that_is_too_large_or_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 2 GB or a FIFO is not copied, and nobody waits for it."""
    monkeypatch.setattr(code, "SCRIPT_BYTES_MAX", 5)
    assert "at most 5" in code.describe(context_of(project), str(project / "files"))["code"]["why"]
    fifo = project / "fifo.py"
    os.mkfifo(fifo)
    context = context_of(project)
    context["program"]["path"] = str(fifo)
    assert "regular" in code.describe(context, str(project / "files"))["code"]["why"]


def test_a_script_outside_of_every_root(project: Path, tmp_path: Path) -> None:
    """It is kept under its own name, and git is asked where the process was started."""
    script = tmp_path / "elsewhere" / "run.py"
    script.parent.mkdir()
    script.write_text("b\n")
    context = context_of(project)
    context["program"]["path"] = str(script)
    facts = code.describe(context, str(project / "files"))
    assert facts["code"]["file"] == "code/run.py" and facts["git"]["root"] == str(project / "work")


def test_links_lead_nowhere(project: Path, tmp_path: Path) -> None:
    """Nothing is written through links that lie where files of the run are to go."""
    directory, outside = project / "files", tmp_path / "outside"
    outside.mkdir()
    directory.mkdir()
    victim = outside / "victim"
    victim.write_text("mine")
    (directory / "diff.patch").symlink_to(victim)
    (directory / "code").symlink_to(outside)
    facts = code.describe(context_of(project), str(directory))
    assert victim.read_text() == "mine" and files_in(outside) == ["victim"]
    assert "is a link out of" in facts["code"]["why"]
    assert not (directory / "diff.patch").is_symlink()


@pytest.mark.parametrize(
    "context",
    [
        {"kept": 1, "program": [], "python": "x", "cwd": 5},
        {"kept": {"git": True, "code": True}, "cwd": "/\0", "program": {"path": "a\0b"}, "python": {"path": [1, "\0"]}},
        {"kept": {"git": True, "diff": 1}, "cwd": "/nowhere", "python": {"prefix": 7, "path": {"a": 1}}},
        {"kept": {"git": True, "code": True}, "program": {"path": "/proc/self/mem", "kind": "script"}},
    ],
)
def test_hostile_facts(tmp_path: Path, context: dict[str, Any]) -> None:
    """Whatever a stream claims of itself, nothing raises."""
    assert isinstance(code.describe(context, str(tmp_path / "files")), dict)


def test_requirements(tmp_path: Path) -> None:
    """The first of two on the path, origins without credentials, nothing that would be another line or option."""
    one, two = tmp_path / "one", tmp_path / "two"
    install(one, "torch", "2.4.0")
    install(two, "Torch", "1.0")
    install(
        two, "b.c", "3", {"url": "https://me:s3cr3t@example.org/b.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}
    )
    install(two, "d", "4", {"url": "https://u:p@example.org/d.whl", "archive_info": {}})
    install(two, "e", "5", {"url": "x\n--extra-index-url http://evil"})
    install(two, "f", "1 --evil")
    (two / "g-1.dist-info").mkdir()
    os.mkfifo(two / "g-1.dist-info" / "METADATA")
    (two / "h.egg-info").mkdir()
    (two / "h.egg-info" / "PKG-INFO").write_text("Name: h\nVersion: 6\n")
    (one / "i-1.dist-info").mkdir()
    (one / "i-1.dist-info" / "direct_url.json").write_text("[" * 100_000)
    (one / "i-1.dist-info" / "METADATA").write_text("Name: i\nVersion: 1\n")
    assert requirements([str(one), str(two), "/nowhere", ""]) == [
        "b.c @ git+https://example.org/b.git@ab12",
        "d @ https://example.org/d.whl  # 4",
        "e==5",
        "h==6",
        "i==1",
        "torch==2.4.0",
    ]


def test_a_conda_environment(tmp_path: Path, project: Path) -> None:
    """Its packages are the names of its records."""
    meta = project / "conda-meta"
    meta.mkdir()
    for name in ("python-3.11.7-h1_0.json", "py-opencv-4.9.0-py311_1.json", "history"):
        (meta / name).touch()
    assert conda_packages(str(project)) == ["py-opencv=4.9.0=py311_1", "python=3.11.7=h1_0"]
    facts = code.describe(context_of(project), str(project / "files"))
    assert facts["packages"]["conda_count"] == 2
    assert (project / "files" / "conda.txt").read_text() == "py-opencv=4.9.0=py311_1\npython=3.11.7=h1_0\n"


def test_what_a_console_script_calls(project: Path) -> None:
    """The stub says nothing; the function that it calls does."""
    info = install(project / "site", "fit", "1")
    (info / "entry_points.txt").write_text("[console_scripts]\nfit-it = fit.cli:main\n")
    assert entry_point([str(project / "site")], "fit-it") == "fit.cli:main"
    context = context_of(project)
    context["program"].update(kind="console script", name="fit-it")
    assert code.describe(context, str(project / "files"))["packages"]["entry_point"] == "fit.cli:main"


def test_commits_that_nobody_else_has_are_a_patch_too(project: Path, tmp_path: Path) -> None:
    """Whoever has the upstream gets to the run's state with one file."""
    clone = tmp_path / "clone"
    run_git(tmp_path, "clone", "-q", str(project / "work"), str(clone))
    base = run_git(clone, "rev-parse", "HEAD")
    (clone / "src" / "train.py").write_text("a = 5\n")
    run_git(clone, "commit", "-qam", "mine")
    context = {**context_of(project, code=False), "cwd": str(clone), "program": {}}
    facts = code.describe(context, str(project / "files"))["git"]
    assert (facts["dirty"], facts["upstream"], facts["files"]) == (False, base, [f"diff_{base}.patch"])
    assert "+a = 5" in (project / "files" / f"diff_{base}.patch").read_text()
