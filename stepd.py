"""The name nobody else has: `import stepd` is `import sdk`, and `python -m stepd` is the command line.

`sdk` is a common name, and a project with a folder of that name hides ours. Then `import stepd` loads our package from its
own directory under the name `stepd`, submodules included; otherwise both names give one and the same module.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # Why: it takes 13 ms to import, before every command; the import system asks for the methods alone
    Loader = MetaPathFinder = object

_ROOT = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.join(_ROOT, "sdk")


def main() -> int:
    """Runs the command line; `daemon` and `sdk` are ours whatever lies in the working directory or on PYTHONPATH."""
    if sys.path and _is_working_directory(sys.path[0]):
        del sys.path[0]
    if _ROOT in sys.path:
        sys.path.remove(_ROOT)
    sys.path.insert(0, _ROOT)
    cli = importlib.import_module("daemon.cli")
    return int(cli.main() or 0)


def _is_working_directory(path: str) -> bool:
    try:
        return not path or os.path.realpath(path) == os.path.realpath(os.curdir)
    except OSError:  # it was removed while somebody stood in it
        return False


def _is_ours(module: ModuleType | None = None) -> bool:
    """Whether `import sdk` finds our package."""
    found = sys.modules.get("sdk") or module
    if found is not None:
        places = list(getattr(found, "__path__", ()))
    else:
        try:
            spec = importlib.util.find_spec("sdk")
        except (ImportError, ValueError):
            return False
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return any(os.path.realpath(place) == os.path.realpath(_PACKAGE) for place in places)


class _SameModule(Loader):
    """Gives a module that is loaded already another name."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the spec of the other name there


class _Submodules(MetaPathFinder):
    """Makes `import stepd.testing` give `sdk.testing`: a second copy would have a current run of its own."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("stepd."):
            return None
        try:
            module = importlib.import_module("sdk." + fullname.removeprefix("stepd."))
        except ModuleNotFoundError:
            return None
        return ModuleSpec(fullname, _SameModule(module), is_package=hasattr(module, "__path__"))


def _same_module() -> ModuleType:
    module = importlib.import_module("sdk")
    if not any(isinstance(finder, _Submodules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Submodules())
    return module


def _own_copy() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "stepd", os.path.join(_PACKAGE, "__init__.py"), submodule_search_locations=[_PACKAGE]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stepd"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
else:
    package = _same_module() if _is_ours() else _own_copy()
    # Why: the console script does `from stepd import main`, and what it gets is the package.
    package.__dict__["main"] = main
    sys.modules[__name__] = package
