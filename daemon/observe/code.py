"""The code state of a run, gathered after `init` has returned: git, packages, the main script.

Called once for each process of a run, in a worker process, with the facts "context" that the trainer wrote (`sdk._process`).
What is large goes as files into the run's directory `files`; the rest is returned as facts (docs/context.md). Nothing of the
user's is executed, the trainer need not live any more, and whatever cannot be found out becomes a fact that says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from daemon.observe import git, packages
from sdk import runfiles
from sdk.errors import Error
from sdk.files import DISK, read_whole

DIFF = "diff.patch"
REQUIREMENTS = "requirements.txt"
CONDA = "conda.txt"
SCRIPT_BYTES_MAX = 1 << 20
# A notebook holds its pictures.
NOTEBOOK_BYTES_MAX = 16 << 20


def describe(context: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """Facts to be added to "context"; writes `diff.patch`, `requirements.txt` and the script below `directory`.

    Takes at most about `git.GIT_SECONDS_MAX` and the time to read the packages' metadata.

    Args:
        context: What the trainer told of itself; hostile. Without any, nothing is done.
        directory: The run's `files`; made when it is needed.
    """
    if not context:
        return {}
    kept = _map(context, "kept")
    facts: dict[str, Any] = {}
    root = None
    if kept.get("git"):
        facts["git"] = _describe_git(context, directory, keeps_changes=bool(kept.get("diff")))
        root = facts["git"].get("root")
    for name, describe_part in (("packages", _describe_packages), ("code", _describe_script)):
        try:
            if found := describe_part(context, directory, root):
                facts[name] = found
        except (OSError, Error, ValueError) as error:
            facts[name] = {"why": _reason(error)}
    return facts


def _describe_git(context: Mapping[str, Any], directory: str, keeps_changes: bool) -> dict[str, Any]:
    """Of the repository that the script lies in, else of the one around the working directory."""
    facts: dict[str, Any] = {"why": "no directory to look in"}
    repository = None
    for place in _places(context):
        facts, repository = git.describe(place)
        if facts.get("why") != git.NO_REPOSITORY:
            break
    if repository is None:
        return facts
    try:
        commit = facts.get("commit")
        changes = repository.changes(commit)
        facts["dirty"] = bool(changes.patch)
        if keeps_changes:
            facts |= _keep_patch(changes, directory, DIFF)
        untracked = [
            name for name in repository.untracked() if not _is_below(os.path.join(repository.root, name), directory)
        ]
        if untracked:
            facts |= {"untracked_count": len(untracked), "untracked": untracked[: git.UNTRACKED_MAX]}
        base = repository.upstream if commit and keeps_changes else None
        if base is not None:
            name = f"diff_{base}.patch"
            told = _keep_patch(repository.changes(base), directory, name)
            facts |= {"upstream": base, "files": [*facts.get("files", ()), *told.pop("files", ())], **told}
    except (git.GitError, OSError, Error) as error:
        facts["why"] = _reason(error)
    return facts


def _is_below(path: str, directory: str) -> bool:
    """Whether a file is one of the store that the run's files lie in: a project may hold its store."""
    store = os.path.dirname(os.path.dirname(os.path.dirname(directory)))
    return path.startswith(os.path.realpath(store) + "/")


def _keep_patch(changes: git.Changes, directory: str, name: str) -> dict[str, Any]:
    if not changes.patch:
        return {}
    runfiles.put_bytes(directory, name, changes.patch)
    return {"files": [name], **({"cut": True} if changes.is_cut else {})}


def _describe_packages(context: Mapping[str, Any], directory: str, root: str | None) -> dict[str, Any]:
    python = _map(context, "python")
    cwd = _text(context.get("cwd"))
    path = [os.path.join(cwd, entry) for entry in python.get("path") or () if isinstance(entry, str)]
    facts: dict[str, Any] = {}
    lines = packages.requirements(path)
    if lines:
        runfiles.put_bytes(directory, REQUIREMENTS, _as_lines(lines))
        facts |= {"count": len(lines), "file": REQUIREMENTS}
    conda = packages.conda_packages(_text(python.get("prefix")))
    if conda:
        runfiles.put_bytes(directory, CONDA, _as_lines(conda))
        facts |= {"conda_count": len(conda), "conda_file": CONDA}
    program = _map(context, "program")
    if program.get("kind") == "console script":
        point = packages.entry_point(path, _text(program.get("name")))
        facts |= {"entry_point": point} if point else {}
    return facts


def _describe_script(context: Mapping[str, Any], directory: str, root: str | None) -> dict[str, Any]:
    """A copy of the main script or notebook, under the name that it has in its repository or working directory."""
    program = _map(context, "program")
    path = _text(program.get("path"))
    if not path or not _map(context, "kept").get("code"):
        return {}
    limit = NOTEBOOK_BYTES_MAX if program.get("kind") == "notebook" else SCRIPT_BYTES_MAX
    whole = os.path.realpath(path)
    data = read_whole(DISK, whole, limit)
    name = f"{runfiles.CODE}/{_name_below(path, whole, (root, context.get('cwd')))}"
    runfiles.put_bytes(directory, name, data)
    return {"file": name, "size": len(data)}


def _name_below(path: str, whole: str, roots: tuple[Any, ...]) -> str:
    for root in roots:
        for one, base in ((path, _text(root)), (whole, os.path.realpath(_text(root)) if root else "")):
            if base and base != "/" and one.startswith(base + "/"):
                return os.path.relpath(one, base)
    return os.path.basename(path)


def _places(context: Mapping[str, Any]) -> list[str]:
    """Where a repository is looked for. A console script's own directory holds the scripts of an environment."""
    program = _map(context, "program")
    script = _text(program.get("path"))
    own = [os.path.dirname(script)] if script and program.get("kind") in ("script", "notebook", "module") else []
    hydra = _text(_map(context, "hydra").get("cwd"))
    found = [place for place in (*own, hydra, _text(context.get("cwd"))) if os.path.isdir(place)]
    return list(dict.fromkeys(found))


def _as_lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _map(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) and "\0" not in value else ""


def _reason(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__
