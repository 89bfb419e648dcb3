"""`init`, `finish` and `attach`: how a run comes to be.

`init` goes through settings, the active run, the store, what the store holds of the id, the facts, the stream, and only
then makes the `Run`. Trouble with a directory leads to another one and a note, never to an exception: a logger must not
keep a training from starting. Nothing here waits for the daemon.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from . import _compat, _context, _greeting, _resume, clock, ids, location
from ._config import Config, config_defaults, filtered, read_config
from ._disabled import DisabledStream, RunStream
from ._globals import bind, forget, in_notebook, remember, state
from ._launcher import Launch, default_project, find_launch
from ._run import Run
from .errors import Error, NotFoundError, StoreError, UsageError
from .files import DISK
from .limits import PROJECT_CHARACTERS_MAX, STEP_GIVEN_MAX
from .location import StoreIdentity
from .segment.naming import RUNS, run_path
from .settings import Settings, resolve

ATTACH_SECONDS_MAX = 2.0
RESUME_SECONDS_MAX = 2.0

_NOWHERE = StoreIdentity("", bytes(16), True)
_NOTHING = "no directory can be written: nothing of this run is recorded"
_PROJECT_FORBIDDEN = "/\\#?%:"
_REINIT = (None, "default", "return_previous", "finish_previous", "create_new", True, False)


def open_stream(store: StoreIdentity, run_facts: Mapping[str, Any], settings: Settings, **options: Any) -> RunStream:
    """`sdk._stream.open_stream`; tests put their own here."""
    from ._stream import open_stream as opener

    stream: RunStream = opener(store, run_facts, settings, **options)
    return stream


def settle(store: StoreIdentity, settings: Settings) -> None:
    """Takes in what dead processes left behind, so that a resume sees their last step; tests put their own here."""
    from ._stream import settle as take_in

    take_in(store, settings, RESUME_SECONDS_MAX)


def read_run(store: str, run_id: str) -> Any:
    """The reader's run."""
    if state.capture is not None:
        return state.capture.read(run_id)
    return _resume.read_store(store).run(run_id)


# -- init ------------------------------------------------------------------------------------------------------------


def init(
    entity: str | None = None,
    project: str | None = None,
    dir: str | os.PathLike[str] | None = None,
    id: str | None = None,
    name: str | None = None,
    notes: str | None = None,
    tags: Any = None,
    config: Any = None,
    config_exclude_keys: Any = None,
    config_include_keys: Any = None,
    allow_val_change: bool | None = None,
    group: str | None = None,
    job_type: str | None = None,
    mode: str | None = None,
    force: bool | None = None,
    anonymous: Any = None,
    reinit: Any = None,
    resume: bool | str | None = None,
    resume_from: str | None = None,
    fork_from: str | None = None,
    save_code: bool | None = None,
    tensorboard: bool | None = None,
    sync_tensorboard: bool | None = None,
    monitor_gym: bool | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    *,
    resume_step: int | None = None,
    misuse: str | None = None,
    sync_to: str | Sequence[str] | None = None,
    logging: bool | int | str = False,
) -> Run:
    """Starts a run, makes it the global one and returns it. Needs no argument; never waits for the daemon.

    An unusable store never ends a training: records go to a temporary one, which is said on stderr. Under a launcher
    every rank calls it: without `id` each rank has a run of its own, `group` is the job; with one `id` all write into one
    run. While a run is active the call returns that run (in a notebook: finishes it and starts the next).

    Args:
        project: What the run belongs to; default: the git repository's name, else the working directory's.
        dir: The store's directory.
        id: The run's id. A run of that id that exists gets another stream, unless `resume` says more.
        config: Hyperparameters: a dict, argparse.Namespace, FLAGS, an object, or the path of a YAML or JSON file.
        mode: "disabled" records nothing, at no cost; every other one means the store of this machine.
        reinit: "default", "return_previous", "finish_previous" (or True), "create_new" (does not become global).
        resume: "allow", "must" (the run exists), "never" (it does not), "auto" or True (with an id as "allow", without one
            the newest crashed, interrupted or preempted run of the project).
        resume_step: The first step of the resumed part: later rows of earlier attempts are hidden, not deleted.
        resume_from: ``"<id>?_step=<n>"``: both in one.
        misuse: "raise" or "warn"; see `Settings`.
        settings: `Settings` or a dict of its fields.
        logging: Stores what the root logger gets as log records of the run (`sdk.LogHandler`): True, or the lowest level.
        save_code: Keep a copy of the main script (default: yes, see `Settings.save_code`).
        sync_to: Where the run is carried while it is written (docs/live-sync.md): a target such as ``"tensorboard:runs"``, or
            several.
        entity, force, anonymous, tensorboard, sync_tensorboard, monitor_gym: accepted, without effect in this version,
            which is said once.

    Raises:
        UsageError: Arguments that contradict one another, a bad id, project or target, resume="must" without such a run.
        ValueError, TypeError: A setting or argument that cannot be.
        UnsupportedError: `fork_from`.
    """
    if reinit not in _REINIT:
        raise ValueError(
            f"init() reinit is {reinit!r}, expected 'default', 'return_previous', 'finish_previous' or 'create_new'"
        )
    chosen = resolve(
        {
            "project": project, "dir": dir, "run_id": id, "name": name, "notes": notes, "tags": tags, "group": group,
            "job_type": job_type, "mode": mode, "resume": resume, "misuse": misuse, "save_code": save_code,
            "sync_to": sync_to,
        },
        settings,
    )  # fmt: skip
    chosen = _with_targets(chosen)
    if logging is not False:
        from ._handler import check_level

        check_level(0 if logging is True else logging)
    launch = find_launch()
    active = _active_run(reinit, chosen)
    if active is not None:
        return active
    chosen = _as_captured(chosen)
    _greeting.set_quiet(chosen.silent or not launch.speaks)
    _tell_ignored(
        chosen, entity=entity, monitor_gym=monitor_gym, sync_tensorboard=sync_tensorboard or tensorboard,
    )  # fmt: skip
    chosen, step = _resume_request(chosen, resume, resume_from, fork_from, resume_step)
    given = {**config_defaults(), **filtered(read_config(config), config_include_keys, config_exclude_keys)}
    run = _start(chosen, launch, given, step, allow_val_change, entity or "")
    if reinit != "create_new":
        bind(run)
    if logging is not False:
        from ._handler import attach_root

        attach_root(run, 0 if logging is True else logging)
    return run


def _as_captured(chosen: Settings) -> Settings:
    """In `sdk.testing.captured` everything is recorded, whatever the environment says, and nothing printed."""
    return chosen if state.capture is None else chosen.replace(mode="offline", silent=True)


def _with_targets(chosen: Settings) -> Settings:
    """With targets that mean the same in every process."""
    if not chosen.sync_to:
        return chosen
    from ._carrying import check_targets

    return chosen.replace(sync_to=check_targets(chosen.sync_to))


def _active_run(reinit: Any, chosen: Settings) -> Run | None:
    """The run that `init` returns because it is active, or None after making room for another."""
    run = state.run
    if run is None or reinit == "create_new" or run._pid != os.getpid():
        return None
    if reinit in (True, "finish_previous") or (reinit in (None, "default") and in_notebook()):
        run.finish()
        return None
    if chosen.resume == "must":
        raise Error(
            f"init(resume='must') was called while run {run.id!r} is active", hint="sdk.finish() first, or reinit=True"
        )
    _greeting.note(
        f"init() was called while run {run.name} ({run.id}) is active, which goes on; for another run: "
        "init(reinit='finish_previous')"
    )
    return run


def _tell_ignored(chosen: Settings, **given: Any) -> None:
    """One line about everything that was asked for and is not done."""
    names = [f"{name}=" for name, value in given.items() if value]
    if names:
        _greeting.note_once("init:" + ",".join(names), f"without effect in this version: {', '.join(names)}")
    if chosen.unknown:
        from .settings import FIELDS

        listed = ", ".join(map(repr, chosen.unknown))
        _greeting.note_once(
            "settings:" + listed, f"Settings fields that mean nothing here: {listed}; known: {', '.join(FIELDS)}"
        )


def _resume_request(
    chosen: Settings, resume: Any, resume_from: str | None, fork_from: str | None, resume_step: int | None
) -> tuple[Settings, int | None]:
    """The settings with `resume_from` worked in, and the step to resume at."""
    if fork_from is not None:
        raise _compat.unsupported(
            "init(fork_from=)", "init(config={'parent': …}) and log from the checkpoint's step on"
        )
    if resume_from is not None:
        if resume or resume_step is not None:
            raise ValueError("init() got resume_from and also resume or resume_step, expected one of them")
        run_id, resume_step = _resume.parse_from(resume_from)
        if "run_id" in chosen.given and chosen.run_id != run_id:
            raise UsageError(f"init() id is {chosen.run_id!r} and resume_from names {run_id!r}, expected the same run")
        chosen = chosen.replace(run_id=run_id, resume="must")
    if resume_step is None:
        return chosen, None
    if isinstance(resume_step, bool) or not isinstance(resume_step, int):
        raise TypeError(f"init() resume_step is {resume_step!r}, expected an int")
    if not 0 <= resume_step <= STEP_GIVEN_MAX:
        raise ValueError(f"init() resume_step is {resume_step}, expected 0 or more")
    if chosen.resume in (None, "never"):
        raise UsageError("init() got resume_step without resume", hint="init(id=…, resume='must', resume_step=…)")
    return chosen, resume_step


def _start(
    chosen: Settings, launch: Launch, config: dict[str, Any], resume_step: int | None, allow: bool | None, entity: str
) -> Run:
    """Makes the run: store, resume plan, facts, stream."""
    project = _checked_project(chosen.project or default_project())
    if chosen.run_id is not None:
        _checked_id(chosen.run_id)
    store, notes = _find_store(chosen)
    plan = _resume.Plan(chosen.run_id)
    if store.path:
        if chosen.resume is not None:
            settle(store, chosen)
        plan = _resume.make_plan(store.path, chosen.run_id, chosen.resume, resume_step, project, launch.rank)
    about = _about(chosen, launch, plan, project, store.path)
    settings = chosen.replace(run_id=about["id"], project=about["project"])
    facts: dict[str, Any] = {"run": {k: v for k, v in about.items() if k not in _unsaid(chosen, launch)}}
    if chosen.sync_to:
        facts["run"]["sync_to"] = list(chosen.sync_to)
    if plan.hide is not None:
        facts["hide"] = plan.hide
    # What `init` is given replaces what an earlier attempt had, whatever allow_val_change says.
    changed: dict[str, Any] = {}
    merged = Config(plan.found.config if plan.found is not None else {}, emit=changed.update, allow_val_change=True)
    merged.update(config)
    if changed:
        facts["config"] = changed
    opened = _open_main(store, facts, settings, plan, about["id"], launch)
    run = Run(
        opened.stream, about, store=opened.store, settings=settings, config=merged.as_dict(),
        allow_val_change=in_notebook() if allow is None else allow, launch=launch, first_step=plan.first_step,
        resumed=plan.resumed, entity=entity, on_finish=forget, read=read_run,
    )  # fmt: skip
    remember(run)
    if not chosen.silent and launch.speaks and state.capture is None and not chosen.disabled:
        _greet(run, [*notes, *plan.notes, *opened.stream.notes])
    if store.path and not isinstance(opened.stream, DisabledStream):
        _context.begin(run)
    return run


def _unsaid(chosen: Settings, launch: Launch) -> set[str]:
    """Facts that this process should not write: a name it made up for a run that it shares with rank 0."""
    shared = chosen.run_id is not None and bool(launch.rank)
    return {"name"} if shared and chosen.name is None else set()


def _about(chosen: Settings, launch: Launch, plan: _resume.Plan, project: str, store: str) -> dict[str, Any]:
    """The run's map in its first META record. A run that exists keeps what this call does not change."""
    found = plan.found
    apart = launch.is_parallel and chosen.run_id is None and not plan.resumed
    run_id = plan.run_id or ids.new_run_id()
    name = chosen.name or (found.name if found is not None else None)
    if name is None:
        name = f"dummy-{run_id}" if chosen.disabled else ids.new_run_name(_run_count(store) + 1)
    return {
        "id": run_id,
        "project": project if chosen.project or found is None else found.project or project,
        "name": f"{name}-rank{launch.rank}" if apart else name,
        "group": chosen.group or (launch.job_id if apart else None) or (found.group if found is not None else None),
        "job_type": chosen.job_type or (found.job_type if found is not None else None),
        "notes": chosen.notes or (found.notes if found is not None else None),
        "tags": list(chosen.tags or (found.tags if found is not None else ())),
    }


def _run_count(store: str) -> int:
    if not store:
        return 0
    try:
        return len(os.listdir(os.path.join(store, RUNS)))
    except OSError:
        return 0


def _checked_project(project: str) -> str:
    bad = [c for c in project if c in _PROJECT_FORBIDDEN]
    if bad or len(project) > PROJECT_CHARACTERS_MAX:
        found = f"contains {bad[0]!r}" if bad else f"has {len(project)} characters"
        raise UsageError(
            f"init() project {project[:40]!r} {found}, expected at most {PROJECT_CHARACTERS_MAX} without any of / \\ # ? % :"
        )
    return project


def _checked_id(run_id: str) -> str:
    try:
        return ids.check_run_id(run_id)
    except (TypeError, ValueError) as error:
        raise UsageError(f"init() {error}") from None


# -- store and stream ------------------------------------------------------------------------------------------------


def _find_store(chosen: Settings) -> tuple[StoreIdentity, list[str]]:
    """A store that can be written, and what to say about the choice; no store at all when nothing can be recorded."""
    if chosen.disabled or state.capture is not None:
        return _NOWHERE, []
    notes: list[str] = []
    for place in _places(chosen):
        try:
            store = location.make_store(place.path)
        except (StoreError, OSError) as error:
            notes.append(getattr(error, "message", str(error)))
            continue
        if notes:
            notes.append(_vanishing(place.path))
        elif place.note is not None:
            notes.append(place.note)
        return store, notes
    return _NOWHERE, [*notes, _NOTHING]


def _places(chosen: Settings) -> Iterator[location.Location]:
    """Where the store may be: where it should be, else temporary directories."""
    import tempfile

    yield location.find_store(chosen.dir)
    base = tempfile.gettempdir()
    yield location.Location(os.path.join(base, f"stepd-{os.getuid()}-store"), None)
    with contextlib.suppress(OSError):
        yield location.Location(tempfile.mkdtemp(prefix="stepd-store-"), None)


class Opened(NamedTuple):
    """A stream and the store it lies in."""

    stream: RunStream
    store: StoreIdentity


def _open_main(
    store: StoreIdentity, facts: Mapping[str, Any], settings: Settings, plan: _resume.Plan, run_id: str, launch: Launch
) -> Opened:
    """The run's stream, in another store where this one turns out not to take it, or a stream of nothing."""
    if not store.path and state.capture is None:
        return Opened(DisabledStream(), store)
    opener = open_stream if state.capture is None else state.capture.open_stream
    options: dict[str, Any] = {
        "run_id": run_id, "continues": plan.continues, "attempt": plan.attempt, "first_step": plan.first_step,
        "extra": launch.facts(),
    }  # fmt: skip
    try:
        return Opened(opener(store, facts, settings, **options), store)
    except (Error, OSError) as error:
        notes = [f"cannot write into {store.path}: {getattr(error, 'message', error)}"]
    for place in list(_places(settings))[1:]:
        try:
            other = location.make_store(place.path)
            stream: RunStream = opener(other, facts, settings, **options)
        except (Error, OSError):
            continue
        stream.notes[:0] = [*notes, _vanishing(place.path)]
        return Opened(stream, other)
    return Opened(DisabledStream([*notes, _NOTHING]), _NOWHERE)


def _vanishing(path: str) -> str:
    return f"records go to {path}, which may vanish; set STEPD_DIR"


def _greet(run: Run, notes: list[str]) -> None:
    if run.settings.mode in ("online", "shared") and "mode" in run.settings.given and not run.settings.sync_to:
        notes.append(f"mode={run.settings.mode!r} is local here: nothing is uploaded")
    _greeting.say(
        _greeting.greeting(
            name=run.name,
            run_id=run.id,
            project=run.project,
            store=run._store.path,
            directory=run.sync_dir or "nowhere",
            notes=notes,
            terminal=_greeting.is_terminal(),
            targets=run.settings.sync_to,
        )
    )


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """Finishes the global run, see `Run.finish`; does nothing without one."""
    if state.run is not None:
        state.run.finish(exit_code, quiet)


join = finish


def attach(run_id: str, *, dir: str | os.PathLike[str] | None = None, settings: Any = None) -> Run:
    """Adds to a run that exists, from any process: an evaluation beside the training, a spawned worker.

    The records form a stream of their own and never change rows of others. Without `step` they begin after the largest
    step that is stored. It becomes the global run where there is none. A run that began a moment ago is waited for, at
    most 2 s.

    Args:
        run_id: An id, the beginning of one, a name, or "latest".

    Raises:
        NotFoundError: No such run. StoreError: No store, or one that cannot be written.
    """
    chosen = _with_targets(_as_captured(resolve({"dir": dir}, settings)))
    run = (
        _start(chosen.replace(run_id=run_id), find_launch(), {}, None, None, "")
        if chosen.disabled
        else _attach_to(run_id, chosen)
    )
    if state.run is None or state.run._pid != os.getpid():
        bind(run)
    return run


def _attach(attach_id: str | None = None, run_id: str | None = None, *, run: Run | None = None) -> Run:
    """W&B's private name, which Lightning calls in the processes it spawns."""
    return run if run is not None else attach(str(attach_id or run_id))


def _attach_to(run_id: str, chosen: Settings) -> Run:
    if state.capture is not None:
        store, found = _NOWHERE, state.capture.read(run_id)
    else:
        store = location.read_store(location.find_store(chosen.dir).path)
        if not store.writable:
            location.make_store(store.path)  # raises and says why
        found = _wait_for_run(store.path, run_id)
    last = _resume._last_step(found)
    first_step = 0 if last is None else last + 1
    about = {
        "id": found.id, "project": found.project, "name": found.name, "group": found.group, "job_type": found.job_type,
        "notes": found.notes, "tags": list(found.tags),
    }  # fmt: skip
    launch = find_launch()
    chosen = chosen.replace(run_id=found.id)
    opener = open_stream if state.capture is None else state.capture.open_stream
    stream = opener(store, {}, chosen, run_id=found.id, kind="attach", first_step=first_step, extra=launch.facts())
    run = Run(
        stream, about, store=store, settings=chosen, config=dict(found.config), kind="attach", launch=launch,
        first_step=first_step, on_finish=forget, read=read_run,
    )  # fmt: skip
    remember(run)
    if store.path:
        _context.begin_beside(run)
    return run


def _wait_for_run(store: str, run_id: str) -> Any:
    """The reader's run: its first record may be on its way to the disk."""
    deadline = clock.monotonic() + ATTACH_SECONDS_MAX
    while True:
        try:
            return read_run(store, run_id)
        except NotFoundError:
            if clock.monotonic() >= deadline or not DISK.exists(run_path(store, run_id)):
                raise
        clock.pause(0.02)


def restore(facts: dict[str, Any]) -> Run:
    """A run that was pickled in another process; its stream opens with its first record."""
    store = StoreIdentity(*facts["store"])
    settings: Settings = facts["settings"]
    launch = find_launch()
    options: dict[str, Any] = {
        "run_id": facts["about"]["id"], "kind": "spawn", "parent": facts["parent"], "first_step": facts["step"],
        "extra": launch.facts(),
    }  # fmt: skip

    def opener() -> RunStream:
        return DisabledStream() if not store.path else open_stream(store, {}, settings, **options)

    run = Run(
        None, facts["about"], store=store, settings=settings, config=facts["config"],
        allow_val_change=facts["allow_val_change"], kind="spawn", launch=launch, first_step=facts["step"],
        entity=facts["entity"], token=facts["token"], opener=opener, on_attach=adopt, on_finish=forget, read=read_run,
    )  # fmt: skip
    run._is_ending = run._finished = facts["finished"]
    run._watched_outside = facts["watched"]
    return run


def adopt(run: Run) -> None:
    """A run from another process that is used here becomes the global one where there is none."""
    remember(run)
    if state.run is None:
        bind(run)
    if run._store.path and not isinstance(run._stream, DisabledStream):
        _context.begin_beside(run)
