"""Settings: what one process may choose for itself. The user's hyperparameters are `config`, never here.

Life: `resolve` makes one `Settings` per run out of, strongest first, the arguments of `init`, its `settings=`, the
variables `STEPD_<FIELD>`, the variables of W&B that scripts and clusters already set, and the defaults below. It is
frozen, holds plain values only, and pickles, so a spawned worker gets the same one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .limits import FREE_BYTES_MIN, GIB, KIB, MIB, TAG_CHARACTERS_MAX

# Limit: the smallest window in which a record of a few hundred values still fits into an eighth of the ring.
RING_BYTES_MIN = 64 * KIB

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})
_RESUME = ("allow", "must", "never", "auto")


class _Bad(Exception):
    """What was expected instead; `_checked` makes the ValueError of it."""


def _choice(*allowed: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise _Bad(" or ".join(map(repr, allowed)))
        return value

    return check


def _text(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise _Bad("a text")
    return str(os.fspath(value))


def _boolean(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE and text not in _FALSE:
        raise _Bad("true or false")
    return text in _TRUE


_UNITS = {"": 1, **{unit: 1024**n for n, unit in enumerate("KMGT", 1)}}
_UNITS |= {f"{unit}IB": size for unit, size in _UNITS.items() if unit}
_UNITS |= {f"{unit}B": 1000**n for n, unit in enumerate(("", "K", "M", "G", "T"))}


def parse_bytes(value: Any) -> int:
    """A number of bytes: 1_000_000, "10G" or "10GiB" (1024³ each), "10GB" (1000³ each), "1.5 M"; as coreutils has it.

    Raises:
        ValueError: It is none, or negative.
    """
    text = "" if isinstance(value, bool) else str(value).strip().upper()
    digits = text.rstrip("KMGTIB ")
    unit = _UNITS.get(text[len(digits) :].strip(), 0)
    with contextlib.suppress(ValueError, OverflowError):
        size = int(digits) * unit if digits.replace("_", "").isdecimal() else int(float(digits) * unit)
        if unit and size >= 0:
            return size
    raise ValueError(f"{value!r} is no number of bytes; 10G, 500M and 1_000_000 are")


def _console(value: Any) -> str:
    """W&B's words, which differ in what they do with terminals' escapes: here that is one thing."""
    text = str(value).strip().lower()
    if text not in ("auto", "wrap", "off", "redirect", "wrap_raw", "wrap_emu"):
        raise _Bad("'auto' or 'wrap' or 'off'")
    return text if text in ("auto", "off") else "wrap"


def _bytes(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        try:
            size = parse_bytes(value)
        except ValueError:
            size = -1
        if size < least:
            raise _Bad(f"a whole number of bytes, at least {least}, such as 10G, 500M or 1_000_000")
        return size

    return check


def _seconds(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf") or isinstance(value, bool):
        raise _Bad("a number of seconds, 0 or more")
    return number


def _tags(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [None]
    for tag in given:
        if not isinstance(tag, str) or not 1 <= len(tag) <= TAG_CHARACTERS_MAX:
            raise _Bad(f"tags of 1 to {TAG_CHARACTERS_MAX} characters")
    return tuple(dict.fromkeys(given))


def _targets(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [None]
    if not all(isinstance(target, str) and target for target in given):
        raise _Bad("targets such as 'tensorboard:runs', or a list of them")
    return tuple(dict.fromkeys(given))


def _resume(value: Any) -> str | None:
    """True means "auto", False and "" mean no resume, as in W&B."""
    if value is None or isinstance(value, bool) or str(value).strip().lower() in _TRUE | _FALSE:
        return "auto" if value is not None and _boolean(value) else None
    text: str = _choice(*_RESUME)(value)
    return text


def _setting(default: Any, check: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, init=False)
class Settings:
    """One process's choices. Every field is a keyword argument, and a variable `STEPD_<FIELD>` gives it from outside.

    Fields that W&B has and stepd has not are accepted: see `unknown`. A field of another name for the same thing
    (`run_name`, `root_dir`) is taken as ours.

    Raises:
        ValueError: A value that cannot be; it names the field, the variable, what was found and what was expected.
    """

    mode: str = _setting("online", _choice("online", "offline", "shared", "dryrun", "run", "disabled"))
    """What becomes of records. "disabled": nothing, at no cost. Every other one is W&B's word for the same thing here,
    the store of this machine; nothing is uploaded before `stepd sync`. STEPD_MODE, else WANDB_MODE, WANDB_DISABLED."""

    project: str | None = _setting(None, _text)
    """What runs are grouped by. Default: the git repository's name, else the working directory's. STEPD_PROJECT."""

    name: str | None = _setting(None, _text)
    """The run's name for people. Default: two random words and a number, as an id cannot be spoken. STEPD_NAME."""

    notes: str | None = _setting(None, _text)
    """A longer text about the run. Default: none. STEPD_NOTES."""

    tags: tuple[str, ...] = _setting((), _tags)
    """Words to find the run by, each of 1 to 64 characters as in W&B. Default: none. STEPD_TAGS, a comma list."""

    group: str | None = _setting(None, _text)
    """What joins the runs of one job or experiment. Default: the job's id under a launcher. STEPD_GROUP."""

    job_type: str | None = _setting(None, _text)
    """What the run does within its group ("train", "eval"). Default: none. STEPD_JOB_TYPE."""

    run_id: str | None = _setting(None, _text)
    """The run's id, unique in the store. Default: eight random characters. STEPD_RUN_ID."""

    resume: str | None = _setting(None, _resume)
    """Whether to go on with a run that exists: "allow", "must", "never", "auto". Default: not, since two jobs that meet
    in one id by accident must not continue one another. STEPD_RESUME."""

    dir: str | None = _setting(None, _text)
    """The store's directory. Default: the nearest `.stepd` upwards, else `~/.stepd`: one place for all projects, so that
    notebooks and changed working directories do not scatter stores. STEPD_DIR."""

    silent: bool = _setting(False, _boolean)
    """Print neither greeting nor receipt nor notes. Default: false, two lines are cheap. STEPD_SILENT."""

    misuse: str = _setting("raise", _choice("raise", "warn"))
    """What a value or key that cannot be stored does. "raise": an exception at the call, since a mistake should show in
    the first minute. "warn": it is left out, counted, and told once, for hour ten of a long job. STEPD_MISUSE."""

    late_steps: str = _setting("merge", _choice("merge", "drop", "error"))
    """What a step below the open one does. "merge" into its row, since nothing should be lost by accident; "drop" is
    W&B's way; "error" raises. STEPD_LATE_STEPS."""

    on_full: str = _setting("refuse", _choice("refuse", "block"))
    """What `log()` does with ring, spool and disk full. "refuse" and count: training goes first. "block": wait.
    STEPD_ON_FULL."""

    overflow_bytes_max: int = _setting(256 * MIB, _bytes(0))
    """The most that large values may take of this process's private memory while shared memory has no room for them, in
    bytes; beyond it a value is dropped, counted and marked. Default: 256 MiB, a second of large tensors.
    STEPD_OVERFLOW_BYTES_MAX."""

    tensor_bytes_per_minute_max: int = _setting(256 * MIB, _bytes(0))
    """The most that raw arrays logged under one key may take on average, in bytes per minute; of those beyond it statistics
    and a histogram are kept (docs/media.md#tensors). Default: 256 MiB, 15 GB an hour. STEPD_TENSOR_BYTES_PER_MINUTE_MAX."""

    ring_bytes: int = _setting(16 * MIB, _bytes(RING_BYTES_MIN))
    """The journal ring of a run, in bytes; made smaller where shared memory is short. Default: 16 MiB hold 150 000 calls
    of five values, two minutes at one call per ms without daemon or disk. STEPD_RING_BYTES."""

    secondary_ring_bytes: int = _setting(256 * KIB, _bytes(RING_BYTES_MIN))
    """The ring of a forked or spawned worker, in bytes. Default: 256 KiB, as workers are many and log little.
    STEPD_SECONDARY_RING_BYTES."""

    console: str = _setting("auto", _console)
    """Whether what the process prints is stored with the run (docs/console.md): "auto" and "wrap" (also W&B's "redirect",
    "wrap_raw", "wrap_emu"), or "off". Default: "auto", as a run without its output is half a run. STEPD_CONSOLE, else
    WANDB_CONSOLE."""

    console_ring_bytes: int = _setting(4 * MIB, _bytes(RING_BYTES_MIN))
    """The ring of a run's console, in bytes. Default: 4 MiB hold 30 000 lines, so that no print waits for a disk.
    STEPD_CONSOLE_RING_BYTES."""

    console_bytes_max: int = _setting(256 * MIB, _bytes(MIB))
    """The most of what one process prints that is stored, in bytes: of more the first part and the last MiB is kept, and
    the middle counted. Default: 256 MiB, two million lines. STEPD_CONSOLE_BYTES_MAX."""

    environment: bool = _setting(True, _boolean)
    """Store what the run ran in: command line, selected variables (what looks like a secret masked), Python, packages, git
    (docs/context.md). Default: true, as half of all questions about an old run are these. STEPD_ENVIRONMENT."""

    watch_exit: bool = _setting(True, _boolean)
    """While the run is unfinished, have `sys.exit` note how it is left (docs/lifecycle.md). Default: true; with false the run
    of a script that ends by ``sys.exit(3)`` has finished. STEPD_WATCH_EXIT."""

    save_code: bool = _setting(True, _boolean)
    """Keep a copy of the main script or notebook with the run. Default: true, unlike W&B: nothing leaves this machine.
    STEPD_SAVE_CODE, else WANDB_SAVE_CODE."""

    disable_code: bool = _setting(False, _boolean)
    """W&B's word for it: no copy of any code, `log_code` included, and no `diff.patch`. Default: false.
    STEPD_DISABLE_CODE, else WANDB_DISABLE_CODE."""

    disable_git: bool = _setting(False, _boolean)
    """Do not ask git for commit, branch, remote and changes. Default: false. STEPD_DISABLE_GIT, else WANDB_DISABLE_GIT."""

    system_metrics: bool = _setting(True, _boolean)
    """Have the daemon sample this run's processes, the machine and its GPUs (docs/system.md). Default: true: it costs the run
    nothing. STEPD_SYSTEM_METRICS; STEPD_OBSERVE=0 keeps a daemon from it for all its runs."""

    system_metrics_seconds: float = _setting(10.0, _seconds)
    """How often, in seconds; 0: never. Default: 10, as a training's use of a machine changes slowly.
    STEPD_SYSTEM_METRICS_SECONDS."""

    shared_memory_dir: str = _setting("/dev/shm", _text)
    """A file system in memory, for the rings. Default: where Linux has it. STEPD_SHARED_MEMORY_DIR."""

    defer: bool = _setting(True, _boolean)
    """Store a value that is still on a device when it has come. Default: true; with false it is fetched by `log`, which
    makes the loop wait for the device. STEPD_DEFER."""

    ring_reader: bool = _setting(True, _boolean)
    """Let a daemon of the same host read the ring itself, so that no thread of this process sends. Default: true; where it
    cannot, and with false, the records are sent. STEPD_RING_READER."""

    stacks: bool = _setting(True, _boolean)
    """Tell the same user's `stepd why` what this process's threads are doing when it asks (docs/why.md). Default: true, as it costs
    nothing until then. STEPD_STACKS."""

    spool_bytes_max: int = _setting(GIB, _bytes(0))
    """The most this process writes itself while no daemon answers, in bytes. Default: 1 GiB, a day of 5 values at 100
    calls a second. STEPD_SPOOL_BYTES_MAX."""

    store_bytes_max: int = _setting(0, _bytes(0))
    """The most that all runs of the store may take together, trash included, in bytes; beyond it records wait in the ring
    and are then refused and counted. Default: 0, no budget: how much a disk is for is the user's to say.
    STEPD_STORE_BYTES_MAX, for the daemon too: the one who starts it says it (`stepd start --store-bytes-max`)."""

    run_bytes_max: int = _setting(0, _bytes(0))
    """The same for this run alone; other runs go on. Default: 0, no budget. STEPD_RUN_BYTES_MAX."""

    free_bytes_min: int = _setting(FREE_BYTES_MIN, _bytes(0))
    """What the store's disk must have left, in bytes; below it as above. Default: 64 MiB, or a sixteenth of a smaller disk:
    logging never takes the last bytes that a checkpoint needs. STEPD_FREE_BYTES_MIN, as with `store_bytes_max`."""

    finish_seconds_max: float = _setting(10.0, _seconds)
    """How long `finish()` waits for the daemon, in seconds, before it writes the rest itself. Default: 10, far above a
    healthy daemon's second and short of a scheduler's patience. STEPD_FINISH_SECONDS_MAX."""

    exit_seconds_max: float = _setting(2.0, _seconds)
    """The same for a run that the script left unfinished, at interpreter exit. Default: 2, since nobody asked for the
    wait. STEPD_EXIT_SECONDS_MAX."""

    sync_to: tuple[str, ...] = _setting((), _targets)
    """Where the run is carried while it is written (docs/live-sync.md): targets as `stepd sync --to` takes them. Default: none, as
    nothing leaves this machine unasked. STEPD_SYNC_TO, separated by spaces or commas."""

    sync_seconds: float = _setting(10.0, _seconds)
    """How long the carrier waits after one pass before the next brings what is new, in seconds. Default: 10, as people look
    every few minutes, and each pass costs a target some requests or an fsync. STEPD_SYNC_SECONDS."""

    autostart: bool = _setting(True, _boolean)
    """Start the daemon when none serves the store. Default: true; without one, records go to the spool.
    STEPD_AUTOSTART."""

    idle_seconds: float = _setting(60.0, _seconds)
    """How long an auto-started daemon stays after the last run of its store, in seconds. Default: 60, so that a loop of
    short scripts keeps one. STEPD_IDLE_SECONDS."""

    restart_seconds: float = _setting(2.0, _seconds)
    """How long a sender looks for a lost daemon before it starts another, in seconds; it backs off from there. Default:
    2, so that a restart by hand or by a process manager comes first. STEPD_RESTART_SECONDS."""

    given: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The fields that were not left to their defaults."""

    unknown: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Names that were given and mean nothing here or in W&B; `init` warns of them once."""

    def __init__(self, **values: Any) -> None:
        known: dict[str, tuple[Any, str]] = {}
        unknown: list[str] = []
        for name, value in values.items():
            ours = _OTHER_NAMES.get(name, name)
            if ours in FIELDS:
                if value is not None:
                    known[ours] = (value, "")
            elif not _is_harmless(name):
                unknown.append(name)
        self._fill(known, unknown)

    def _fill(self, known: Mapping[str, tuple[Any, str]], unknown: Iterable[str]) -> None:
        for item in FIELDS.values():
            value = _checked(item, *known[item.name]) if item.name in known else item.default
            object.__setattr__(self, item.name, value)
        object.__setattr__(self, "given", tuple(known))
        object.__setattr__(self, "unknown", tuple(unknown))

    @property
    def disabled(self) -> bool:
        """Whether nothing is to be stored."""
        return self.mode == "disabled"

    @property
    def for_daemon(self) -> dict[str, str]:
        """Variables that tell a daemon which we start about the budgets that were given."""
        given = ("store_bytes_max", "free_bytes_min")
        return {_variable(name): str(getattr(self, name)) for name in given if name in self.given}

    def replace(self, **values: Any) -> Settings:
        """A copy with some fields changed."""
        made = Settings.__new__(Settings)
        kept = {name: (getattr(self, name), "") for name in self.given}
        made._fill({**kept, **{name: (value, "") for name, value in values.items()}}, self.unknown)
        return made


FIELDS = {item.name: item for item in fields(Settings) if item.metadata}

_OTHER_NAMES = {
    "run_name": "name",
    "run_notes": "notes",
    "run_tags": "tags",
    "run_group": "group",
    "run_job_type": "job_type",
    "root_dir": "dir",
    "finish_timeout": "finish_seconds_max",
    "x_stats_sampling_interval": "system_metrics_seconds",
}
_WANDB_VARIABLES = {
    "project": "WANDB_PROJECT",
    "name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
    "tags": "WANDB_TAGS",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "run_id": "WANDB_RUN_ID",
    "resume": "WANDB_RESUME",
    "mode": "WANDB_MODE",
    "console": "WANDB_CONSOLE",
    "save_code": "WANDB_SAVE_CODE",
    "disable_code": "WANDB_DISABLE_CODE",
    "disable_git": "WANDB_DISABLE_GIT",
    "silent": "WANDB_SILENT",
    "dir": "WANDB_DIR",
}
# W&B's settings that ask for something that stepd does not do or does anyway: nothing is lost by passing them over.
# Those with a leading underscore or `x_` are private there and all of this kind.
_HARMLESS = frozenset(
    "allow_offline_artifacts allow_val_change anonymous api_key app_url azure_account_url_to_access_key base_url "
    "capture_loggers code_dir colab_url config_paths console_chunk_max_bytes console_chunk_max_seconds "
    "console_multipart credentials_file deployment disable_hints disable_job_creation docker "
    "email entity force fork_from git_commit git_remote git_remote_url git_root heartbeat_seconds host http_proxy "
    "https_proxy identity_token_file ignore_globs init_policy init_timeout insecure_disable_ssl job_name job_source "
    "label_disable launch launch_config_path login_timeout max_end_of_run_history_metrics "
    "max_end_of_run_summary_metrics monitor_gym organization program program_abspath program_relpath "
    "quiet reinit relogin resume_from sagemaker_disable settings_system show_colors show_emoji show_errors "
    "show_info show_warnings start_datetime start_method start_time stop_on_fatal_error strict summary_errors "
    "summary_timeout summary_warnings sweep_id sweep_param_path symlink sync_tensorboard system_sample "
    "system_sample_seconds table_raise_on_max_row_limit_exceeded timeout username".split()
)


def _is_harmless(name: str) -> bool:
    return name in _HARMLESS or name.startswith(("_", "x_"))


def _checked(item: Any, value: Any, variable: str) -> Any:
    try:
        return item.metadata["check"](value)
    except _Bad as problem:
        where = f"variable {variable}" if variable else f"variable {_variable(item.name)}, or an argument"
        raise ValueError(f"setting {item.name!r} ({where}) is {value!r}, expected {problem}") from None


def _variable(name: str) -> str:
    return f"STEPD_{name.upper()}"


def resolve(
    arguments: Mapping[str, Any],
    settings: Settings | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings of a run.

    Args:
        arguments: What `init` was called with; None counts as not given.
        settings: What its `settings=` says: only fields that were given count.
        environ: The environment; an empty variable counts as unset.

    Raises:
        TypeError: `settings` is neither.
        ValueError: As `Settings`.
    """
    if isinstance(settings, Mapping):
        settings = Settings(**settings)
    elif settings is not None and not isinstance(settings, Settings):
        raise TypeError(f"init() settings is {type(settings).__name__}, expected sdk.Settings or a dict")
    known = _from_environment(environ)
    if settings is not None:
        known.update((name, (getattr(settings, name), "")) for name in settings.given)
    known.update((name, (value, "")) for name, value in arguments.items() if value is not None)
    made = Settings.__new__(Settings)
    made._fill(known, settings.unknown if settings is not None else ())
    return made


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Field to (value, variable), ours before W&B's."""
    known: dict[str, tuple[Any, str]] = {}
    for name in FIELDS:
        for variable in (_variable(name), _WANDB_VARIABLES.get(name, "")):
            text = environ.get(variable, "")
            if text:
                known[name] = (_from_text(name, text), variable)
                break
    ours = known.get("mode", (None, ""))[1] == _variable("mode")
    if not ours and environ.get("WANDB_DISABLED", "").strip().lower() not in _FALSE:
        known["mode"] = ("disabled", "WANDB_DISABLED")
    return known


def _from_text(name: str, text: str) -> Any:
    if name == "tags":
        return [tag.strip() for tag in text.split(",") if tag.strip()]
    if name == "sync_to":
        return text.replace(",", " ").split()
    return text
