"""Variables of the environment that mean something to us, those that nearly do, and the settings that follow."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping

from daemon.doctor.finding import Finding, bad, note, ok, warn
from daemon.doctor.machine import Machine
from sdk import settings
from sdk._secrets import is_secret_name, mask_text
from sdk.errors import Error

# Those that are no settings of a run, and who looks at them.
OTHERS = {
    "STEPD_OBSERVE": "0 keeps a daemon from looking at processes, machine and GPUs",
    "STEPD_TRUST_STORE": "1 writes into a store of another user",
    "STEPD_ARTIFACT_DIR": "where artifacts are fetched to",
}
# Of W&B's, what is read beside those that are settings.
WANDB_OTHERS = ("WANDB_DISABLED", "WANDB_ARTIFACT_DIR", "WANDB_CONFIG_PATHS")
_SHOWN_CHARACTERS = 60
_PREFIX = "STEPD_"
_TESTS = "STEPD_TEST_"  # our own tests' and benches'


def known() -> dict[str, str]:
    """Every variable of ours, and the setting it gives ("" for those that are none)."""
    return {**{f"{_PREFIX}{name.upper()}": name for name in settings.FIELDS}, **dict.fromkeys(OTHERS, "")}


def check_variables(machine: Machine) -> Iterator[Finding]:
    """STEPD_*: unknown ones with the nearest name, and values that cannot be."""
    environ, names = machine.environ, known()
    given = sorted(name for name in environ if name.startswith(_PREFIX) and not name.startswith(_TESTS))
    fine = []
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.6)
            cure = f"unset {name}; export {near[0]}=…" if near else f"unset {name}"
            yield warn(f"{name} means nothing{f'; {near[0]} would' if near else ''}", cure)
        elif trouble := _trouble(name, environ[name]):
            yield bad(trouble, f"unset {name}")
        else:
            fine.append(name)
    if fine or not given:
        yield ok(", ".join(fine) or "no STEPD_ variable is set")


def _trouble(name: str, value: str) -> str:
    """What is wrong with a variable; an `init` would raise it."""
    try:
        settings.resolve({}, None, {name: value})
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def check_wandb(machine: Machine) -> Iterator[Finding]:
    """WANDB_*: which ones count here, and which do not."""
    from daemon.sync.targets.wandb.session import _KEPT

    environ = machine.environ
    given = sorted(name for name in environ if name.startswith("WANDB_") and environ[name])
    taken: list[str] = []
    ignored: list[str] = []
    behind: list[str] = []
    carried: list[str] = []
    fields = {variable: name for name, variable in settings._WANDB_VARIABLES.items()}
    for name in given:
        ours = f"{_PREFIX}{fields.get(name, '').upper()}"
        if name in fields and environ.get(ours):
            behind.append(f"{name} (behind {ours})")
        elif name in fields or name in WANDB_OTHERS:
            taken.append(name)
        else:
            (carried if name in _KEPT else ignored).append(name)
        if name in fields and not environ.get(ours) and (trouble := _trouble(name, environ[name])):
            yield bad(trouble, f"unset {name}")
    told = [f"taken: {', '.join(taken)}"] if taken else []
    told += [f"for stepd sync --to wandb: {', '.join(carried)}"] if carried else []
    told += [f"not used: {', '.join([*ignored, *behind])}"] if ignored or behind else []
    yield ok("; ".join(told) or "no WANDB_ variable is set")


def check_settings(machine: Machine) -> Iterator[Finding]:
    """What is in force here, where that is not the default, and where each comes from; whether anything is stored at all."""
    environ = machine.environ
    try:
        chosen = settings.resolve({}, None, environ)
    except (ValueError, TypeError, Error):
        yield note("cannot be told while a variable is wrong (above)")
        return
    sources = source_of(environ)
    if chosen.disabled:
        name = sources.get("mode", "mode")
        yield bad(f"nothing is stored: {name}={environ.get(name, '')} disables every run", f"unset {name}")
    if not chosen.autostart:
        yield note("STEPD_AUTOSTART=0: no init() starts a daemon; without one records go to the spool", "stepd start")
    if "store_bytes_max" in sources or "run_bytes_max" in sources:
        yield note("a budget is set: beyond it records are refused and counted", "stepd status")
    shown = [f"{name}={_shown(name, getattr(chosen, name))} ({source})" for name, source in sources.items()]
    yield ok(f"{'; '.join(shown)}; all else as sdk/settings.py has it" if shown else "all defaults")


def source_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Setting -> the variable that gives it."""
    return {name: variable for name, (_, variable) in settings._from_environment(environ).items()}


def _shown(name: str, value: object) -> str:
    if is_secret_name(name):
        return "***"
    text = json.dumps(value, default=str) if not isinstance(value, str) else mask_text(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a run is made as if nobody had set anything, and no launcher had started us."""
    dropped = (_PREFIX, "WANDB_", "SLURM_", "OMPI_", "PMI", "TORCHELASTIC_")
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PBS_JOBID", "LSB_JOBID")
    return {n: v for n, v in environ.items() if not n.startswith(dropped) and n not in ranks}
