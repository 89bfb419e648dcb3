"""What is said of installing is true while stepd is on no registry: from the clone, and packages by their own names."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sdk.errors import install_hint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
# What users have no use for yet: tools of ours, and what serves a page that is not there.
INTERNAL = {"demo", "bench", "test", "ui"}


def test_no_hint_sends_to_a_registry() -> None:
    """`pip install stepd` would find nothing there, or a stranger: hints name the missing package, and the interpreter."""
    named = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("sdk", "daemon")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"pip install[^`]*\bstepd\b(?! *\.)", line) and "clone" not in line
    ]
    assert named == []
    assert install_hint("pyarrow") == f"pip install pyarrow   (interpreter: {sys.executable})"


def test_the_extras_of_the_readme() -> None:
    """Each extra for users has a place in the table."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("### Extras", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"`([a-z0-9]+)`", table)) >= set(declared) - INTERNAL


def test_the_image_is_built_from_the_clone() -> None:
    """What the Dockerfile copies is there, and is all that a wheel is made of."""
    examples = ROOT / "docs" / "examples" / "containers"
    copied = {
        word
        for line in re.findall(r"^COPY (.*)$", (examples / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert [word for word in copied if not (ROOT / word).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert copied >= {*wheel, "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    (context,) = re.findall(r"context: (\S+)", (examples / "compose.yaml").read_text(encoding="utf-8"))
    assert (examples / context).resolve() == ROOT
    assert re.search(r"dockerfile: docs/examples/containers/Dockerfile\n", (examples / "compose.yaml").read_text())
