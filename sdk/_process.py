"""What a run was started as: one META record "context" at `init`, from what this process knows without asking anybody.

Nothing is executed, read from a disk or waited for: it takes well under a millisecond. What takes longer (git, packages, a
copy of the script) a worker process of the daemon adds from these facts (`daemon.observe.code`; docs/context.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._secrets import MASK, chosen_variables, mask_arguments

if TYPE_CHECKING:
    from ._run import Run

# Limit: together an eighth of what a META record may take in the smallest ring of a run that shared memory allows (1 MiB).
_BYTES_MAX = 32 << 10
# Who runs somebody else's script in their own process: `python -m cProfile train.py`.
_WRAPPERS = frozenset(
    "cProfile profile pdb trace runpy coverage debugpy kernprof viztracer scalene memory_profiler line_profiler memray "
    "torch.utils.bottleneck".split()
)
# A variable that only this launcher sets -> its name; the outer ones last, since they start the inner ones.
_LAUNCHERS = (
    ("ACCELERATE_MIXED_PRECISION", "accelerate"), ("TORCHELASTIC_RUN_ID", "torchrun"), ("RAY_JOB_ID", "ray"),
    ("OMPI_COMM_WORLD_RANK", "mpirun"), ("SLURM_PROCID", "srun"), ("PMI_RANK", "mpiexec"), ("SLURM_JOB_ID", "slurm"),
    ("PBS_JOBID", "pbs"), ("LSB_JOBID", "lsf"),
)  # fmt: skip


def begin(run: Run) -> None:
    """Tells the run what it was started as. A rank that shares rank 0's run leaves it to rank 0."""
    if not run.settings.environment or _shares_a_run(run):
        return
    facts = describe(os.environ, run._launch.facts())
    settings = run.settings
    # What the worker may keep: it has no settings of this process.
    facts["kept"] = {
        "git": not settings.disable_git,
        "diff": not settings.disable_code,
        "code": settings.save_code and not settings.disable_code,
    }
    run._emit({"context": facts})


def _shares_a_run(run: Run) -> bool:
    # Ranks with runs of their own have names that end with the rank (`_api._about`).
    rank = run._launch.rank
    return bool(rank) and not run.name.endswith(f"-rank{rank}")


def describe(environ: Mapping[str, str], launch: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The facts, as docs/context.md lists them. Never raises for what a process may be."""
    facts: dict[str, Any] = {
        "command": _bounded(mask_arguments(_text(argument) for argument in sys.orig_argv)),
        "program": program(),
        "cwd": _cwd(),
        "pid": os.getpid(),
        "host": _text(os.uname().nodename),
        "user": _text(environ.get("USER") or environ.get("LOGNAME") or _user_name()),
        "python": {
            "version": sys.version.partition(" ")[0],
            "implementation": sys.implementation.name,
            "executable": _text(sys.executable or ""),
            "prefix": _text(sys.prefix),
            "path": _bounded([_text(entry) for entry in sys.path if isinstance(entry, str)]),
        },
        "environment": _bounded_map(chosen_variables({_text(name): _text(text) for name, text in environ.items()})),
    }
    launcher = next((name for variable, name in _LAUNCHERS if environ.get(variable)), None)
    if launcher is not None:
        facts["launcher"] = {
            "name": launcher,
            **{name: value for name, value in (launch or {}).items() if value is not None},
        }
    hydra = _hydra()
    if hydra:
        facts["hydra"] = hydra
    return facts


def program() -> dict[str, Any]:
    """What the main script is: `kind`, a `name` for people, and `path` and `module` where there are such.

    Under torchrun and accelerate the processes that log are plain scripts, which those start; under a profiler or debugger
    it is the script that is profiled.
    """
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    file = os.path.abspath(file) if isinstance(file, str) and file[:1] != "<" else None  # "<stdin>"
    first = sys.argv[0] if sys.argv and isinstance(sys.argv[0], str) else ""
    if _in_notebook():
        return _notebook(main)
    if first == "-c":
        return {"kind": "command", "name": "python -c"}
    if file is None:
        interactive = hasattr(sys, "ps1") or sys.flags.interactive
        return {"kind": "interactive" if interactive else "stdin", "name": "python"}
    spec = getattr(main, "__spec__", None)
    module = getattr(spec, "name", None)
    module = module.removesuffix(".__main__") if isinstance(module, str) else None
    wrapper = module if module is not None and (module in _WRAPPERS or module.partition(".")[0] in _WRAPPERS) else None
    if wrapper is None and os.path.basename(file) in _WRAPPERS:
        wrapper = os.path.basename(file)
    if wrapper is not None and first.endswith(".py") and os.path.abspath(first) != file:
        path = os.path.abspath(first)
        return {"kind": "script", "name": _text(first), "path": _text(path), "under": wrapper}
    if module is not None and module != "__main__":
        return {"kind": "module", "name": f"python -m {module}", "path": _text(file), "module": module}
    if _is_console_script(file):
        return {"kind": "console script", "name": _text(os.path.basename(file)), "path": _text(file)}
    return {"kind": "script", "name": _text(first or os.path.basename(file)), "path": _text(file)}


def _is_console_script(file: str) -> bool:
    """Whether it is what an installer makes of an entry point: a name without suffix among the interpreter's programs."""
    directories = {
        os.path.dirname(sys.executable or ""),
        os.path.join(sys.prefix, "bin"),
        os.path.expanduser("~/.local/bin"),
    }
    return not file.endswith((".py", ".pyw", ".pyz")) and os.path.dirname(file) in directories


def _in_notebook() -> bool:
    has_kernel = "ipykernel" in sys.modules and hasattr(sys.modules.get("builtins"), "get_ipython")
    return has_kernel or _in_ipython()


def _in_ipython() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return callable(shell) and shell() is not None


def _notebook(main: Any) -> dict[str, Any]:
    """Jupyter and VS Code say the notebook's file, where they do at all."""
    spaces = (
        getattr(main, "__session__", None),
        getattr(main, "__vsc_ipynb_file__", None),
        os.environ.get("JPY_SESSION_NAME"),
    )
    path = next((text for text in spaces if isinstance(text, str) and text), None)
    if "ipykernel" not in sys.modules:
        return {"kind": "interactive", "name": "ipython"}
    if path is None:
        return {"kind": "notebook", "name": "notebook"}
    return {"kind": "notebook", "name": _text(os.path.basename(path)), "path": _text(os.path.abspath(path))}


def _hydra() -> dict[str, str]:
    """Where Hydra was started and writes to, if it runs: it may have changed the working directory."""
    config = getattr(sys.modules.get("hydra.core.hydra_config"), "HydraConfig", None)
    if config is None:
        return {}
    try:
        if not config.initialized():
            return {}
        runtime = config.get().runtime
        return {"cwd": _text(str(runtime.cwd)), "output": _text(str(runtime.output_dir))}
    except Exception:  # another version of Hydra, or none that is set up
        return {}


def _cwd() -> str | None:
    try:
        return _text(os.getcwd())
    except OSError:  # it was removed
        return None


def _user_name() -> str:
    """Of the system's list of users; a container may have none for its number."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _text(value: str) -> str:
    """What is no UTF-8 in a path or argument is replaced, so that any reader can print it."""
    return value.encode("utf-8", "replace").decode()


def _bounded(texts: Sequence[str]) -> list[str]:
    """As many as fit, and a mark where there were more."""
    kept: list[str] = []
    room = _BYTES_MAX
    for text in texts:
        room -= len(text) + 4
        if room < 0:
            return [*kept, "…"]
        kept.append(text)
    return kept


def _bounded_map(texts: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    room = _BYTES_MAX
    for name, text in texts.items():
        room -= len(name) + len(text) + 8
        kept[name] = text if room >= 0 or text == MASK else "…"
    return kept
