"""Runs to W&B: online to its server, or offline as directories that `wandb sync` takes.

Offline, each pass that finds something new writes one directory. W&B's package writes it below `work-…`, and when it is whole it gets
its name, `wandb/offline-run-<created>-<run>-<digest of the target>-<pass>`; only then the pass is noted. A pass that was killed leaves
a directory in `work-…`, or one with a number that was never noted: the next pass removes both and writes the same again.

Online, a pass is noted when W&B's package has sent everything, and its log tells of nothing that was refused. The server says how
many rows it has: what it has beyond those that were noted arrived with a pass that was killed, and is left out by the next one.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from daemon.formats import wandb_names
from daemon.sync.passage import Passage
from daemon.sync.place import Place
from daemon.sync.target import CURSORS, Target
from daemon.sync.targets.wandb import facts as about
from daemon.sync.targets.wandb.session import Session, explained, outside_environment, put_back
from daemon.sync.targets.wandb.values import Values
from sdk import clock
from sdk.errors import Error, UsageError, install_hint
from sdk.files import DISK, Files, sync_names
from sdk.ids import run_directory

# While a run lives, so many steps wait for what other ranks may still say of them: W&B takes no row behind a later one.
HOLD_BACK_STEPS = 100
# And a pass comes at most so often: offline each makes a directory, online each asks the server several things.
PASS_SECONDS_MIN = {"offline": 60.0, "online": 15.0}
_ANSWER_SECONDS = 30
_VERSION_MIN = (0, 31)
# The year 9999: a store may say anything.
_SECONDS_MAX = 253_402_300_799.0
_MODES = ("online", "offline")
_CONSOLE, _SYSTEM = "console", "system"
# What `wandb sync` makes beside a file that it has sent: run-<id>.wandb.synced.
_SENT = ".wandb.synced"


class WandbTarget(Target):
    """`wandb:`, `wandb:project` or `wandb:entity/project`, with the options `mode` and `dir`."""

    scheme: ClassVar[str] = "wandb"
    options: ClassVar[frozenset[str]] = frozenset({"mode", "dir"})

    def __init__(self, place: Place, files: Files = DISK) -> None:
        super().__init__(place)
        self._files = files
        entity, _, project = place.path.strip("/").rpartition("/")
        self.entity, self.project = entity, project
        if "/" in entity:
            raise UsageError(f"{place.text!r} names no project of W&B, expected wandb:project or wandb:entity/project")
        self.mode = _mode_of(place)
        chosen = place.options.get("dir") or os.environ.get("WANDB_DIR") or os.curdir
        self.directory = os.path.abspath(os.path.expanduser(chosen))
        self._wandb: Any = None
        self._taken: dict[str, str] | None = None

    @property
    def is_offline(self) -> bool:
        return self.mode == "offline"

    def cursors(self) -> str | None:
        return os.path.join(self.directory, CURSORS) if self.is_offline else None

    def check(self) -> None:
        wandb = self._package()
        if self.is_offline:
            try:
                self._files.make_directory(self.directory)
            except OSError as error:
                raise UsageError(f"{self.place.text!r}: {self.directory!r} cannot be written: {error}") from error
            return
        with explained(wandb, "log in to W&B"):
            if not wandb.login(relogin=False, timeout=1):
                raise UsageError(
                    "W&B wants an API key, and there is none",
                    hint="WANDB_API_KEY=… stepd sync …, wandb login, or --to wandb:…?mode=offline",
                )

    def carry(self, passage: Passage) -> None:
        where = self._where()
        if passage.state and passage.state.get("where") != where:
            passage.start_again()
        if not passage.is_over and 0 <= _now() - passage.state.get("at", 0.0) < PASS_SECONDS_MIN[self.mode]:
            return
        carrying = _Carrying(self, passage, where)
        if carrying.take_back():
            carrying = _Carrying(self, passage, where)
        try:
            carrying.carry()
        except _BehindError:
            passage.start_again()
            passage.told("W&B's server did not have all the rows that it was sent; they were sent again")
            _Carrying(self, passage, where).carry()

    def close(self) -> None:
        if self._wandb is not None:
            self._wandb.teardown()
        if self._taken is not None:
            put_back(self._taken)
            self._taken = None

    def _package(self) -> Any:
        if self._taken is None:
            self._taken = outside_environment()
        if self._wandb is None:
            wandb: Any = None
            missing = "it has no version"
            try:
                wandb = importlib.import_module("wandb")
            except ImportError as error:
                missing = str(error)
            # A directory `wandb` with runs, as W&B leaves one wherever it was used, passes for a package of that name.
            version = getattr(wandb, "__version__", None)
            if version is None:
                raise UsageError(
                    f"{self.place.text!r} needs the package wandb: {missing}", hint=install_hint("'wandb>=0.31'")
                )
            if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < _VERSION_MIN:
                # What `wandb sync` of earlier ones sends of a second pass overwrites the first.
                raise UsageError(
                    f"{self.place.text!r} needs the package wandb 0.31 or later, found {version}",
                    hint=install_hint("'wandb>=0.31'"),
                )
            wandb.setup(settings=wandb.Settings(silent=True))
            self._wandb = wandb
        return self._wandb

    def _where(self) -> str:
        """What a pass may go on with: the same directory, or the same server and owner. A digest: the URL may hold anything."""
        if self.is_offline:
            return "offline"
        return _digest(f"{os.environ.get('WANDB_BASE_URL')} {self.entity}")

    def _project(self, said: Mapping[str, Any]) -> str:
        return str(self.project or said["project"] or "uncategorized")

    def lines(self, said: Mapping[str, Any], last_step: int | None) -> int:
        """How many rows of a run the server has; prepares it to take those that follow them.

        Args:
            last_step: Of the last row that was noted as delivered.
        """
        wandb = self._package()
        path = "/".join(part for part in (self.entity, self._project(said), said["id"]) if part)
        with explained(wandb, "ask W&B for a run"):
            try:
                found = wandb.Api(timeout=_ANSWER_SECONDS).run(path)
            except Exception as error:
                if "Could not find run" in str(error):
                    return 0
                raise
            # Why: the package resumes behind the step of the summary, which a pass that failed may have sent before its rows.
            # It would give rows that are sent again the steps behind that. Without it, it looks at the last row.
            if found.summary.get("_step") not in (None, last_step):
                del found.summary["_step"]
                found.summary.update()
            return int(found._attrs.get("historyLineCount") or 0)

    def open(self, passage: Passage, said: Mapping[str, Any], work: str) -> Session:
        """A session for a run; `work` is where W&B puts its directory."""
        told = {name: said[name] for name in ("id", "name", "group", "job_type", "tags", "notes") if said[name]}
        return Session(
            self._package(),
            {**told, "project": self._project(said), "entity": self.entity or None, "config": said["config"]},
            work,
            is_offline=self.is_offline,
            is_last=passage.is_over,
            host=said["host"],
            program=said["program"],
        )


class _BehindError(Exception):
    """The server has less than what was noted as delivered."""


class _Carrying:
    """One run on its way."""

    def __init__(self, target: WandbTarget, passage: Passage, where: str) -> None:
        self._target, self._passage, self._where = target, passage, where
        self._files = target._files
        self._run = passage.run
        self._state: dict[str, Any] = copy.deepcopy(passage.state)
        self._said: dict[str, Any] = {}
        self._session: Session | None = None
        self._skip = 0
        self._values: Values | None = None
        name = run_directory(self._run.id)
        self._parent = os.path.join(target.directory, CURSORS) if target.is_offline else ""
        # Two targets may share a directory: the same run for two projects.
        self._works = f"work-{_digest(f'{target.place.path} {name}')}-"
        self._work = ""
        created = time.gmtime(min(max(self._run.created, 0.0), _SECONDS_MAX))
        self._name = f"offline-run-{time.strftime('%Y%m%d_%H%M%S', created)}-{name}-{_digest(target.place.path)[:4]}-"

    def carry(self) -> None:
        """Everything that is new; a session is begun when there is something."""
        passage = self._passage
        self._state["resumes"] = list(self._resumes())
        self._said = about.facts_of(self._run, passage.is_over, self._lost_once)
        digest = _digest(json.dumps(self._said, sort_keys=True, default=str))
        try:
            if digest != self._state.get("facts"):
                self._begin()
            self._rows()
            self._system()
            self._console()
            self._kept()
            if self._session is not None:
                self._end(digest)
        finally:
            if self._session is not None:
                self._session.abandon()
            self._clean()

    def take_back(self) -> bool:
        """Looks whether a resume hid rows that were carried. True: nobody has them yet, and all is to be carried again.

        W&B takes no row back and none behind a later one, so what was sent stays: then it is counted.
        """
        known, last = self._state.get("resumes", ()), self._state.get("last_step", -1)
        first = min((step for stream, step in self._resumes().items() if stream not in known), default=last + 1)
        if first > last:
            return False
        if self._is_unsent():
            self._passage.start_again()
            # Race: noted first, because a pass that is killed between the two would miss what it has removed.
            self._passage.commit({})
            self._remove_from(1)
            return True
        self._passage.lost("steps that a resume took back", None, last - first + 1)
        self._passage.told(
            f"a resume took back steps {first} to {last}, which were sent: W&B keeps the rows of the earlier attempt there"
        )
        return False

    def _resumes(self) -> dict[str, int]:
        """The streams that hide what came before them -> from which step on."""
        streams = [stream for lane in self._run._lanes for stream in lane.streams]
        return {stream.hex: stream.hide_from for stream in streams if stream.hide_from is not None}

    def _is_unsent(self) -> bool:
        """Whether all directories of the run are there and `wandb sync` has sent none: it leaves a file beside what it sent."""
        if not self._target.is_offline:
            return False
        for number in range(1, int(self._state.get("passes", 0)) + 1):
            path = os.path.join(self._target.directory, "wandb", f"{self._name}{number:04d}")
            names = [name for name, _, _ in self._files.entries(path)] if self._files.exists(path) else []
            if not names or any(name.endswith(_SENT) for name in names):
                return False
        return True

    def _remove_from(self, number: int) -> None:
        """Removes the run's directories from a pass on."""
        target = os.path.join(self._target.directory, "wandb")
        for name, _, _ in self._files.entries(target):
            tail = name.removeprefix(self._name)
            if tail != name and tail.isdecimal() and int(tail) >= number:
                self._files.remove_tree(os.path.join(target, name))

    def _lost_once(self, what: str, key: str = "") -> None:
        """Facts are told anew with each pass; what is lost of them counts once."""
        known = self._state.setdefault("lost", [])
        if [what, key] not in known:
            known.append([what, key])
            self._passage.lost(what, key)

    def _begin(self) -> Session:
        if self._session is None:
            self._clean()
            if self._parent:
                # Race: W&B's service outlives a killed worker by a second or two, and writes where that one was.
                self._work = os.path.join(self._parent, f"{self._works}{os.urandom(4).hex()}")
            else:
                self._work = tempfile.mkdtemp(prefix="stepd-wandb-")  # online nothing of it is wanted later
            made = os.path.join(self._work, "media")
            self._files.make_directory(made)
            self._skip = 0 if self._target.is_offline else self._arrived()
            self._session = self._target.open(self._passage, self._said, self._work)
            self._values = Values(self._target._package(), made, self._passage.lost)
            self._session.environment(about.environment_of(self._run))
            for name, said in about.metrics_of(self._run, self._passage.told):
                try:
                    self._session.define(name, said)
                except Exception as error:  # W&B's rules about names are its own
                    self._passage.lost(f"definitions of metrics that W&B refused ({type(error).__name__})", name)
        return self._session

    def _arrived(self) -> int:
        """How many rows are at the server beyond those that were noted."""
        lines, known = self._target.lines(self._said, self._state.get("last_step")), int(self._state.get("rows", 0))
        if lines < known:
            raise _BehindError
        return lines - known

    def _rows(self) -> None:
        created = self._run.created
        for rows in self._passage.rows(hold_back=HOLD_BACK_STEPS):
            session = self._begin()
            assert self._values is not None
            points = 0
            for row in rows:
                step, at = row.pop("_step"), row.pop("_timestamp")
                points += len(row)
                values = self._values.row(row)
                media = {key: value for key, value in values.items() if not _is_plain(value)}
                plain = {key: value for key, value in values.items() if key not in media}
                plain["_timestamp"], plain["_runtime"] = at, max(at - created, 0.0)
                if self._skip:  # it arrived with a pass that was killed before it was noted
                    self._skip -= 1
                    session.saw(step, plain)
                else:
                    session.row(step, plain, media, self._passage.lost)
                self._state.update(rows=self._state.get("rows", 0) + 1, last_step=step)
            self._passage.moved(points)

    def _system(self) -> None:
        for batch in self._passage.batches({_SYSTEM}):
            for _, _, time_us, values in batch.rows():
                found = wandb_names.to_wandb(values)
                if found:
                    self._begin().sample(time_us * 1000, found)
                    self._passage.moved(len(found))

    def _console(self) -> None:
        console = about.Console(self._state.get("live", {}), self._passage.lost)
        for batch in self._passage.batches({_CONSOLE}):
            rank = batch.stream.number("rank")
            for _, _, time_us, values in batch.rows():
                for stream, text in console.lines(batch.stream.hex, batch.lane, rank, values):
                    self._begin().output(stream, time_us * 1000, text)
                    self._passage.moved(1)
        if self._passage.is_over:
            for stream, text in console.rest():
                self._begin().output(stream, int(self._run.updated * 1e9), text)
        self._state["live"] = console.live

    def _kept(self) -> None:
        """Files and artifacts that are new or have changed."""
        known = dict(self._state.get("files", {}))
        for file in self._run.files():
            mark = f"{file.size} {file.modified}"
            if file.state != "kept" or known.get(file.name) == mark:
                continue
            if file.name in about.RESERVED or file.name.startswith("media/"):
                self._passage.lost("files that W&B's own have the names of", file.name)
            else:
                session = self._begin()
                try:
                    file.copy_to(session.files)
                    session.save(file.name)
                except (OSError, Error):
                    self._passage.lost("files that cannot be read", file.name)
            known[file.name] = mark
            self._passage.check()
        self._state["files"] = known
        carried = list(self._state.get("artifacts", []))
        for artifact in self._run.logged_artifacts():
            name = f"{artifact.name}"
            if artifact.state != "COMMITTED" or name in carried:
                continue
            session = self._begin()
            try:
                made = about.artifact_of(self._target._package(), artifact, os.path.join(self._work, "artifact"))
                session.log_artifact(made, list(artifact.aliases))
            except Exception as error:  # the package raises what it likes; the run is more than one of its artifacts
                self._passage.lost(f"artifacts that could not be carried ({type(error).__name__})", name)
            carried.append(name)
            self._passage.check()
        self._state["artifacts"] = carried
        if self._run.used_artifacts():
            self._passage.told("which artifacts a run used is not carried: W&B wants to look them up at its server")

    def _end(self, digest: str) -> None:
        session, said = self._session, self._said
        assert session is not None
        session.finish(said["summary"], said["exit_code"])
        self._session = None
        self._state.update(where=self._where, facts=digest, at=_now())
        if self._target.is_offline:
            self._put_in_place()
        self._passage.commit(self._state)

    def _put_in_place(self) -> None:
        """Gives the directory that W&B wrote its name. What has a number that was never noted is of a killed pass."""
        made = os.path.join(self._work, "wandb")
        (source,) = (name for name, _, _ in self._files.entries(made) if name.startswith("offline-run-"))
        target = os.path.join(self._target.directory, "wandb")
        self._files.make_directory(target)
        number = int(self._state.get("passes", 0)) + 1
        self._remove_from(number)
        for name in ("logs", "tmp"):  # they tell of this process
            if self._files.exists(os.path.join(made, source, name)):
                self._files.remove_tree(os.path.join(made, source, name))
        size = about.force(os.path.join(made, source), self._files)
        self._files.rename(os.path.join(made, source), os.path.join(target, f"{self._name}{number:04d}"))
        sync_names(self._files, target)
        self._passage.moved(0, size)
        self._state["passes"] = number

    def _clean(self) -> None:
        """Removes what this pass needed, and what killed ones left."""
        left = [self._work] if self._work else []
        if self._parent:
            names = [name for name, _, _ in self._files.entries(self._parent)]
            left = [os.path.join(self._parent, name) for name in names if name.startswith(self._works)]
        for path in left:
            with contextlib.suppress(OSError):  # what somebody still writes into is removed the next time
                self._files.remove_tree(path)


def _now() -> float:
    return clock.wall_ns() / 1e9


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it: an object of W&B's package, or a list of them, cannot."""
    return value is None or isinstance(value, (str, int, float, dict)) or (
        isinstance(value, list) and all(map(_is_plain, value))
    )  # fmt: skip


def _mode_of(place: Place) -> str:
    """What the URL says, else `WANDB_MODE`, else "online"."""
    mode = place.options.get("mode") or os.environ.get("WANDB_MODE") or "online"
    mode = "offline" if mode == "dryrun" else mode
    if mode not in _MODES:
        raise UsageError(
            f"{place.text!r}: the mode of W&B is {mode!r}, expected online or offline",
            hint="--to wandb:…?mode=offline",
        )
    return mode
