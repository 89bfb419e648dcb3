"""Jobs for the carrier: which runs are to be carried to which targets while they are written, and how far that is.

A job is one JSON file ``<store>/syncing/<run>-<target>.<machine>.json``, where run and target stand as digests: one for each run,
target and machine, replaced when it is left again. Whoever leaves it returns at once; the daemon of that machine sees it when it
looks around and starts the carrier (`daemon.carrier`), which makes one pass after another and removes the job once the run is over
and delivered. With no daemon it waits for the next one, or for `stepd sync --drain`. A job appears whole, by rename, and is not
forced to the disk: after a power loss it may be gone, and then `stepd sync` carries the run.

``<store>/syncing/told/`` holds a small JSON file of the same name that says what became of the last pass. It stays when the job is
gone, so that `finish()`, the receipt and `stepd status` need nobody to ask.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from . import clock
from .errors import DamageError
from .files import DISK, Files, read_whole, write_unforced
from .ids import hex_u64, random_u64
from .location import StoreIdentity, check_store
from .platform import boot_id, machine_id
from .segment.naming import SYNCING, machine_tag

# What `daemon.sync.registry` knows; others are looked for among the entry points.
SCHEMES = ("jsonl", "tensorboard", "parquet", "mlflow", "wandb", "stepd")
# Of these what stands behind the colon is a directory of this machine, but for a bucket of parquet's.
DIRECTORIES = frozenset({"jsonl", "tensorboard", "parquet", "stepd"})
_BUCKET = "s3://"
# A URL, or one that lacks a slash, and the way that scp names a directory of another machine.
_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|[^/@]+@[^/:]+:")
# What stands between "//" and "@": a user, and perhaps a password. The same without a "//", where it is no name of a directory.
_LOGIN = re.compile(r"//[^/?#]*@")
_BARE_LOGIN = re.compile(r"[^/?#]*:[^/?#]*@|[^/?#]+@")
JOB_SUFFIX = ".json"
TOLD = "told"
_ENDED_SUFFIX = ".ended"
# Limit: a run's id has 128 characters, a target is a line, and of what is told the losses have some lines.
BYTES_MAX = 256 << 10
# What says how a run was carried stays so long after the last word of it.
TOLD_SECONDS_MAX = 7 * 86400.0
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.([0-9a-f]{8}|unknown)\.json", re.ASCII)


class Job(NamedTuple):
    """The name of a job's file, taken apart: digests of the run's id and of the target, and whose it is (`machine_tag`)."""

    path: str
    run: str
    target: str
    machine: str

    @property
    def told_path(self) -> str:
        """Where what is told of it stands."""
        directory, name = os.path.split(self.path)
        return os.path.join(directory, TOLD, name)

    @property
    def is_ours(self) -> bool:
        """Whether it was left on this machine: a directory that it names is one here."""
        return self.machine in (own_tag(), "unknown")


class Order(NamedTuple):
    """What a job says. `mark` is another one each time it is left; `seconds` is the pause between two passes.

    Attributes:
        is_beginning: It was left by a process that has just begun, of which nothing may be stored yet.
    """

    run: str
    target: str
    mark: str
    seconds: float
    is_beginning: bool = False


class Told(NamedTuple):
    """What became of carrying one run to one target so far.

    Attributes:
        state: Of the last pass, a word of `daemon.sync.outcome`; "carrying" during the first one.
        began: `clock.monotonic` when the pass was begun that came to its end last; 0: none has.
        again_at: The same, of the next try after one that went wrong; 0: nothing went wrong.
        at_ns: Unix time of this.
        points: Values delivered so far. behind: Records that the store had and the target had not when the last pass went wrong.
        reason: Why something is not there; "" for nothing.
        lost: What the target cannot hold -> how often.
        trouble: What is wrong with the run itself: damage, gaps; "" for nothing.
        has_ended: No process of the training lived when the pass began: only what was observed of it may still come.
        is_over: The run has ended and all of it is there: the job is gone.
        boot: The `boot_id` that `began` and `again_at` count in.
    """

    run: str
    target: str
    state: str = "carrying"
    began: float = 0.0
    again_at: float = 0.0
    at_ns: int = 0
    points: int = 0
    behind: int = 0
    reason: str = ""
    lost: Mapping[str, int] = {}
    trouble: str = ""
    has_ended: bool = False
    is_over: bool = False
    boot: str = ""

    @property
    def began_here(self) -> float:
        """`began`, where that is comparable with our clock."""
        return self.began if self.boot == boot_id() else 0.0


def is_in_directory(scheme: str, path: str) -> bool:
    """Whether what stands behind a target's colon is a directory of this machine."""
    return scheme in DIRECTORIES and not (scheme == "parquet" and "://" in path)


def is_elsewhere(scheme: str, path: str) -> bool:
    """Whether it is a URL, or of another machine, where the target is a directory of this one."""
    if scheme not in DIRECTORIES or (scheme == "parquet" and path.startswith(_BUCKET)):
        return False
    return _ELSEWHERE.match(path) is not None


def holds_login(scheme: str, text: str) -> bool:
    """Whether what stands behind a target's colon holds a user, or a user and a password."""
    return bool(_LOGIN.search(text)) or (scheme not in DIRECTORIES and bool(_BARE_LOGIN.match(text)))


def elsewhere_hint(scheme: str, path: str) -> str:
    """What to write for a URL that was given where a directory is expected."""
    found, _, rest = path.partition(":")
    if found in ("s3", "s3a", "s3n"):
        return f"parquet:{_BUCKET}{rest.lstrip('/')}"
    return (
        f"{scheme}:/a/directory, or parquet:{_BUCKET}bucket/prefix" if scheme == "parquet" else f"{scheme}:/a/directory"
    )


def syncing_path(store: str) -> str:
    return os.path.join(store, SYNCING)


def job_of(store: str, run: str, target: str) -> Job:
    """The job of this machine for a run and a target, whether it is there or not."""
    names = _digest(run), _digest(target), own_tag() or "unknown"
    return Job(os.path.join(syncing_path(store), f"{names[0]}-{names[1]}.{names[2]}{JOB_SUFFIX}"), *names)


def put_job(
    store: StoreIdentity, run: str, target: str, seconds: float, files: Files = DISK, *, is_beginning: bool = False
) -> Job:
    """Leaves a job, or the same once more, which has its next pass begin at once; takes about 0.1 ms.

    Raises:
        OSError: The store takes no file now. StoreError: It is away.
    """
    job = job_of(store.path, run, target)
    # Invariant: nothing is made on the bare mount point of a store that is away.
    check_store(store, files)
    files.make_directory(os.path.dirname(job.path))
    body = {"run": run, "target": target, "mark": hex_u64(random_u64()), "seconds": seconds}
    _write(files, job.path, {**body, "is_beginning": is_beginning})
    return job


def jobs(store: str, files: Files = DISK) -> list[Job]:
    """The jobs that wait, of all machines, in order of names. Only names are looked at."""
    return _named(syncing_path(store), "", files)


def read_job(job: Job, files: Files = DISK) -> Order:
    """What was put.

    Raises:
        OSError: The file cannot be read, or is gone: somebody else ended it.
        DamageError: It is no job.
    """
    found = _read(files, job.path)
    values: list[Any] = [found.get(name) for name in Order._fields]
    run, target, mark, seconds, is_beginning = values
    are_texts = all(isinstance(text, str) for text in (run, target, mark))
    if not are_texts or not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
        raise DamageError(f"cannot read job {job.path!r}: found {found!r}, expected {', '.join(Order._fields)}")
    return Order(run, target, mark, float(seconds), is_beginning is True)


def end_job(job: Job, order: Order, files: Files = DISK) -> bool:
    """Removes a job that is done; False when it was left once more since it was read: it stays."""
    aside = job.path + _ENDED_SUFFIX
    try:
        # Race: 1. we read the job, 2. a resumed run leaves it again, 3. we remove it. So it is taken first and then looked at.
        files.rename(job.path, aside)
    except FileNotFoundError:
        return True
    try:
        is_same = read_job(job._replace(path=aside), files).mark == order.mark
    except DamageError:
        is_same = True
    if not is_same:
        with contextlib.suppress(FileExistsError):
            files.link(aside, job.path)
    with contextlib.suppress(FileNotFoundError):
        files.remove(aside)
    return is_same


def tell(job: Job, told: Told, files: Files = DISK) -> None:
    """Says beside the job how far it is.

    Raises:
        OSError: The store takes no file now.
    """
    files.make_directory(os.path.dirname(job.told_path))
    _write(files, job.told_path, {**told._asdict(), "lost": dict(told.lost)})


def read_told(job: Job, files: Files = DISK) -> Told | None:
    """What was told last; None for nothing, or nothing that can be read."""
    try:
        found = _read(files, job.told_path)
        known = {name: found[name] for name in Told._fields if name in found}
        told = Told(**known)
        numbers = (told.began, told.again_at, told.at_ns, told.points, told.behind, *dict(told.lost).values())
        texts = (told.run, told.target, told.state, told.reason, told.trouble, told.boot, *dict(told.lost))
    except (OSError, DamageError, TypeError, ValueError):
        return None
    are_numbers = all(isinstance(number, (int, float)) for number in numbers)
    return told if are_numbers and all(isinstance(text, str) for text in texts) else None


def all_told(store: str, files: Files = DISK) -> list[Told]:
    """What was told last of every run and target, those whose job is gone included."""
    found = (read_told(job, files) for job in _named(syncing_path(store), TOLD, files))
    return [told for told in found if told is not None]


def forget_told(store: str, now_ns: int, files: Files = DISK) -> None:
    """Removes what was told of jobs that are long gone."""
    waiting = {job.told_path for job in jobs(store, files)}
    oldest_ns = now_ns - int(TOLD_SECONDS_MAX * 1e9)
    for job in _named(syncing_path(store), TOLD, files):
        with contextlib.suppress(OSError):
            if job.told_path not in waiting and files.status(job.told_path).modified_ns < oldest_ns:
                files.remove(job.told_path)


class Backlog(NamedTuple):
    """What waits for one target.

    Attributes:
        runs: How many runs have a job.
        failing: How many of them are behind because the last pass went wrong.
        reason: Why, of the last one that did.
        age_seconds: How long ago anything was told; None: nothing was.
        elsewhere: How many of the jobs were left on other machines.
        behind: Records that the target lacks of those that are behind; 0: not known.
    """

    target: str
    runs: int
    failing: int
    reason: str
    age_seconds: float | None
    elsewhere: int
    behind: int = 0


def backlog(store: str, files: Files = DISK) -> list[Backlog]:
    """For each target that has jobs, how far they are; in order of targets."""
    by_target: dict[str, list[tuple[Job, Told | None]]] = {}
    for job in jobs(store, files):
        with contextlib.suppress(OSError, DamageError):
            by_target.setdefault(read_job(job, files).target, []).append((job, read_told(job, files)))
    return [_sum(target, pairs) for target, pairs in sorted(by_target.items())]


def _sum(target: str, pairs: Iterable[tuple[Job, Told | None]]) -> Backlog:
    pairs = list(pairs)
    told = sorted((told for _, told in pairs if told is not None), key=lambda told: told.at_ns)
    failing = [entry for entry in told if entry.reason]
    return Backlog(
        target=target,
        runs=len({job.run for job, _ in pairs}),
        failing=len(failing),
        behind=sum(entry.behind for entry in failing),
        reason=failing[-1].reason if failing else "",
        age_seconds=max((clock.wall_ns() - told[-1].at_ns) / 1e9, 0.0) if told else None,
        elsewhere=sum(not job.is_ours for job, _ in pairs),
    )


def own_tag() -> str:
    """What stands for this machine in names."""
    return machine_tag(machine_id())


def _named(directory: str, below: str, files: Files) -> list[Job]:
    """The jobs that names in the directory, or in one below it, are made of."""
    matches = (_NAME.fullmatch(name) for name, _, _ in files.entries(os.path.join(directory, below)))
    return [
        Job(os.path.join(directory, match[0]), match[1], match[2], match[3]) for match in matches if match is not None
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _read(files: Files, path: str) -> dict[str, Any]:
    import json

    try:
        found = json.loads(read_whole(files, path, BYTES_MAX))
    except (ValueError, RecursionError) as error:
        raise DamageError(f"cannot read {path!r}: {error}") from None
    if not isinstance(found, dict):
        raise DamageError(f"cannot read {path!r}: is {type(found).__name__}, expected a map")
    return found


def _write(files: Files, path: str, body: Mapping[str, Any]) -> None:
    import json

    write_unforced(files, path, json.dumps(body, separators=(",", ":")).encode("ascii"))
