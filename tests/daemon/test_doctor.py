"""`stepd doctor`: what each check says of machines that are made up. Running them is tests/daemon/test_doctor_command.py."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections import namedtuple
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from daemon.doctor import limits, lines, measuring, memory, names, probing, service, storage, surroundings, variables
from daemon.doctor.checks import CHECKS
from daemon.doctor.finding import BAD, NOTE, OK, WARN, Finding
from daemon.doctor.machine import Machine, Mount
from sdk import __version__, _spawn, platform
from sdk.journal.ring import Ring
from sdk.location import StoreIdentity
from sdk.settings import FIELDS
from sdk.transport import known_lock_path

ROOT = Path(__file__).resolve().parents[2]
Status = namedtuple("Status", "f_bavail f_blocks f_frsize f_files f_favail")


def made(
    tmp_path: Path,
    files: Mapping[str, str] | None = None,
    *,
    directory: str | None = None,
    uid: int = 1000,
    **environ: str,
) -> Machine:
    """A machine whose /proc, /sys and so on hold these files only."""
    for name, text in (files or {}).items():
        path = tmp_path / "root" / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(directory or str(tmp_path / "store"), environ=environ, root=str(tmp_path / "root"), uid=uid)


def mounts(*rows: tuple[str, str, str]) -> dict[str, str]:
    """/proc/self/mountinfo of (place, kind, options)."""
    text = "".join(
        f"{number} 1 8:{number} / {place} {options} shared:1 - {kind} /dev/disk{number} rw\n"
        for number, (place, kind, options) in enumerate(rows, 20)
    )
    return {"/proc/self/mountinfo": text}


def levels(found: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in found]


def one(found: Iterable[Finding], level: str) -> Finding:
    """The only finding of this level."""
    (finding,) = [finding for finding in found if finding.level == level]
    return finding


# -- the machine ---------------------------------------------------------------------------------------------------------------


def test_mounts_are_told_by_the_longest_place(tmp_path: Path) -> None:
    """A later mount of the same place hides the earlier one, a place is no prefix of a word, and blanks are read."""
    machine = made(
        tmp_path,
        mounts(
            ("/", "ext4", "rw"), ("/data", "nfs4", "rw"), ("/data", "xfs", "rw,noexec"), ("/my\\040disk", "btrfs", "rw")
        ),
    )
    kinds = {path: machine.mount_of(path) for path in ("/", "/data/runs", "/database", "/my disk/x")}
    assert {path: mount and mount.kind for path, mount in kinds.items()} == {
        "/": "ext4", "/data/runs": "xfs", "/database": "ext4", "/my disk/x": "btrfs",
    }  # fmt: skip
    assert made(tmp_path / "none", {"/proc/self/mountinfo": "nonsense\n1 2 3\n"}).mount_of("/") is None


@pytest.mark.parametrize(
    ("files", "environ", "kind"),
    [
        ({}, {}, ""),
        ({"/.dockerenv": ""}, {}, "docker"),
        ({"/run/.containerenv": ""}, {}, "podman"),
        ({"/.dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"APPTAINER_CONTAINER": "/a.sif"}, "apptainer"),
        ({"/proc/1/cgroup": "0::/kubepods/burstable/pod1\n"}, {}, "kubernetes"),
        ({}, {"container": "systemd-nspawn"}, "systemd-nspawn"),
    ],
)
def test_the_kind_of_container(tmp_path: Path, files: dict[str, str], environ: dict[str, str], kind: str) -> None:
    """By what each leaves: a file, a variable, the name of its cgroup."""
    assert made(tmp_path, files, **environ).container == kind


def test_each_place_gets_lines_in_its_own_words(tmp_path: Path) -> None:
    """Docker's option and compose's key, a pod's volume, a job script's lines."""
    assert lines.shared_memory(made(tmp_path, {"/.dockerenv": ""}))[0].startswith("docker run --shm-size=1g")
    assert "shm_size: 1gb" in lines.shared_memory(made(tmp_path, {"/.dockerenv": ""}))[1]
    assert "medium: Memory" in "".join(lines.shared_memory(made(tmp_path, KUBERNETES_SERVICE_HOST="x")))
    assert "remount" in lines.shared_memory(made(tmp_path / "bare"))[0]
    job = lines.node_disk(made(tmp_path / "bare", SLURM_JOB_ID="7"))
    assert any(line.startswith("export STEPD_DIR=") for line in job)
    assert any("stepd sync --drain" in line for line in job)


# -- names ---------------------------------------------------------------------------------------------------------------------


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_strange_daemon_on_path_is_said_with_what_it_would_do(tmp_path: Path) -> None:
    """Debian's first, ours behind it: a warning that names the file, and the command to use instead."""
    script(tmp_path / "usr" / "daemon", "\x7fELF")
    ours = f"#!{sys.executable}\nfrom stepd import main\n"
    script(tmp_path / "env" / "daemon", ours)
    script(tmp_path / "env" / "stepd", ours)
    path = f"{tmp_path}/usr:{tmp_path}/env"
    found = list(names.check_commands(made(tmp_path, PATH=path)))
    assert str(tmp_path / "usr" / "daemon") in one(found, WARN).text
    assert one(found, WARN).mend == ("stepd …   # instead of daemon …",)
    assert [command.is_ours for command in names.commands_on_path("daemon", path)] == [False, True]
    turned = list(names.check_commands(made(tmp_path, PATH=f"{tmp_path}/env:{tmp_path}/usr")))
    assert levels(turned) == [OK, OK]
    assert "behind it" in turned[1].text


def test_a_missing_or_another_stepd_gets_a_line_that_always_works(tmp_path: Path) -> None:
    """Not on PATH, somebody else's, or that of another environment: `python -m stepd` of this one."""
    assert levels(names.check_commands(made(tmp_path, PATH=str(tmp_path)))) == [NOTE]
    script(tmp_path / "a" / "stepd", "#!/bin/sh\necho other\n")
    strange = one(names.check_commands(made(tmp_path, PATH=str(tmp_path / "a"))), WARN)
    assert "not ours" in strange.text
    assert "-m stepd" in strange.mend[0]
    script(tmp_path / "c" / "stepd", '#!/usr/bin/python "odd\nfrom stepd import main\n')
    assert "not ours" in one(names.check_commands(made(tmp_path, PATH=str(tmp_path / "c"))), WARN).text
    script(tmp_path / "b" / "stepd", "#!/another/env/bin/python\nfrom stepd import main\n")
    assert "/another/env/bin/python" in one(names.check_commands(made(tmp_path, PATH=str(tmp_path / "b"))), NOTE).text


OURS = {"sdk": f"{ROOT}/sdk/__init__.py", "daemon": f"{ROOT}/daemon/__init__.py", "stepd": f"{ROOT}/stepd.py"}


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        (OURS, OURS, [OK]),
        ({**OURS, "sdk": "/work/sdk/__init__.py"}, OURS, [OK, WARN]),
        ({**OURS, "daemon": "/work/daemon.py"}, OURS, [OK, NOTE]),
        (OURS, {**OURS, "sdk": "/site/sdk/__init__.py"}, [WARN]),
        (OURS, {**OURS, "daemon": "/site/daemon/__init__.py"}, [NOTE]),
        (OURS, dict.fromkeys(OURS), [WARN]),
    ],
)
def test_whose_sdk_is_imported(inside: dict[str, Any], outside: dict[str, Any], expected: list[str]) -> None:
    """Ours, one in the working directory that hides it, another one that is installed, or none at all."""
    assert levels(names.judge_imports("/work", inside, outside)) == expected


def test_a_folder_called_sdk_is_seen_by_asking_a_fresh_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that hides ours is named, with the import that works beside it."""
    (tmp_path / "sdk.py").write_text("")
    monkeypatch.chdir(tmp_path)
    found = list(names.check_imports(made(tmp_path, PYTHONPATH=str(ROOT), PATH=os.environ["PATH"])))
    assert f"{tmp_path}/sdk.py" in one(found, WARN).text
    assert one(found, WARN).mend[0].startswith("import stepd as sdk")


def test_a_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stands in one is told so."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert one(names.check_imports(made(tmp_path)), WARN).mend == ("cd ~",)


def test_who_shares_our_names_in_this_environment() -> None:
    """python-daemon is good to know, two versions of us are to mend."""
    assert levels(names.judge_twins({"stepd": {__version__}})) == [OK]
    assert "python-daemon 3.1.2" in one(names.judge_twins({"python-daemon": {"3.1.2"}}), NOTE).text
    assert levels(names.judge_twins({"stepd": {__version__, "0.0.1"}})) == [WARN]
    assert levels(names.judge_twins({"stepd": {"0.0.1"}})) == [WARN]


def test_python_and_packages_of_this_environment_are_fine(tmp_path: Path) -> None:
    """Where the tests run everything that is needed is there."""
    assert BAD not in levels([*names.check_python(made(tmp_path)), *names.check_packages(made(tmp_path))])


# -- the store -----------------------------------------------------------------------------------------------------------------


def test_the_store_and_what_chose_it(store: StoreIdentity, tmp_path: Path) -> None:
    """One that is there, one that would be made, one that cannot be, one that others may write into."""
    assert "from --dir" in one(storage.check_store(made(tmp_path, directory=store.path, uid=os.getuid())), OK).text
    assert "made by the first init()" in one(storage.check_store(made(tmp_path)), OK).text
    os.chmod(store.path, 0o777)
    open_to_all = one(storage.check_store(made(tmp_path, directory=store.path, uid=os.getuid())), BAD)
    assert open_to_all.mend[0] == f"chmod go-w {store.path}"
    strange = one(storage.check_store(made(tmp_path, directory=store.path, uid=3_999_999_999)), BAD)
    assert "writes nothing there" in strange.text
    os.chmod(store.path, 0o700)
    (tmp_path / "file").write_text("")
    for path in ("file", "file/store"):
        blocked = one(storage.check_store(made(tmp_path, directory=str(tmp_path / path))), BAD)
        assert f"as {tmp_path}/file is no directory" in blocked.text
    (Path(store.path) / "store.json").write_text("{}")
    assert levels(storage.check_store(made(tmp_path, directory=store.path))) == [BAD]


def test_a_store_in_which_no_run_can_be_made(
    store: StoreIdentity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As somebody with more rights has left one: the directory of runs is looked at too."""
    os.makedirs(f"{store.path}/runs", exist_ok=True)
    machine = made(tmp_path, directory=store.path, uid=os.getuid())
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("runs"))
    assert "runs/ in it belongs to" in one(storage.check_store(machine), BAD).text
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "belongs to" in one(storage.check_store(machine), BAD).text
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((0,) * 8 + (os.ST_RDONLY, 255)))
    assert "mounted read-only" in one(storage.check_store(machine), BAD).text


@pytest.mark.parametrize(
    ("kind", "options", "level", "word"),
    [
        ("ext4", "rw", OK, "a disk"),
        ("xfs", "rw,sync", NOTE, "every write waits"),
        ("ext4", "ro", BAD, "read-only"),
        ("tmpfs", "rw", WARN, "memory"),
        ("overlay", "rw", WARN, "own layer"),
        ("nfs4", "rw", NOTE, "other machines"),
        ("nfs", "rw,nolock", NOTE, "on this machine only"),
        ("lustre", "rw", NOTE, "without flock"),
        ("lustre", "rw,flock", NOTE, "other machines"),
        ("fuse.gcsfuse", "rw", WARN, "object storage"),
        ("fuse.sshfs", "rw", NOTE, "other machines"),
        ("exfat", "rw", WARN, "owners and modes"),
        ("fuse.gocryptfs", "rw", NOTE, "not tried"),
    ],
)
def test_what_each_kind_of_file_system_means(tmp_path: Path, kind: str, options: str, level: str, word: str) -> None:
    """A finding for each kind; without flock or locks more is said than with them."""
    (found,) = storage.check_file_system(made(tmp_path, mounts(("/", kind, options))))
    assert found.level == level
    assert word in found.text
    assert ("without flock" in found.text) == (kind == "lustre" and "flock" not in options)
    assert found.mend or level in (OK, NOTE)


def test_a_store_that_does_not_stay_is_fine_where_runs_are_carried_away(tmp_path: Path) -> None:
    """A node's memory, or a container's own layer, with STEPD_SYNC_TO."""
    for kind in ("tmpfs", "overlay"):
        machine = made(tmp_path, mounts(("/", kind, "rw")), STEPD_SYNC_TO="stepd:/archive")
        assert levels(storage.check_file_system(machine)) == [OK]


def test_a_job_of_many_nodes_on_a_shared_file_system_is_to_mend(tmp_path: Path) -> None:
    """The lines are those of the job script."""
    machine = made(tmp_path, mounts(("/", "lustre", "rw,flock")), SLURM_JOB_ID="7")
    (found,) = storage.check_file_system(machine)
    assert found.level == WARN
    assert f"export STEPD_SYNC_TO=stepd:{machine.store}" in found.mend


def test_free_space_is_held_against_what_must_stay_free(tmp_path: Path) -> None:
    """Below the floor nothing is stored; little is to mend; a budget is told."""

    def found(free: int, **environ: str) -> Finding:
        return one_of(storage.check_space(made(tmp_path, **environ), lambda _: Status(free, 10**12, 1, 0, 0)))

    assert found(10**11).level == OK
    assert found(10**9).level == WARN
    assert found(10**7).level == BAD
    assert found(10**9, STEPD_FREE_BYTES_MIN="2G").level == BAD
    assert "store_bytes_max 10.7 GB" in found(10**11, STEPD_STORE_BYTES_MAX="10G").text


def one_of(found: Iterable[Finding]) -> Finding:
    (finding,) = found
    return finding


@pytest.mark.parametrize(
    ("files", "left", "level"), [(0, 0, OK), (10**6, 10**5, OK), (10**6, 500, WARN), (10**6, 10, BAD)]
)
def test_inodes(tmp_path: Path, files: int, left: int, level: str) -> None:
    """A file system without a limit tells 0 of 0."""
    assert one_of(storage.check_inodes(made(tmp_path), lambda _: Status(1, 1, 1, files, left))).level == level


LFS = "        /lustre  95000000*  80000000 100000000   6d23h  120000  200000  250000       -\n"
NFS = """Disk quotas for user x (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/home  8000000  10000000  11000000   0   120000  0  0  0
"""


def test_quotas_as_the_commands_tell_them(tmp_path: Path) -> None:
    """`lfs quota -q` and `quota -wp`; over, near and far from the limit; no numbers are no quota."""
    machine = made(tmp_path)
    told = storage.parse_quota(LFS)
    assert told == (95000000 * 1024, 80000000 * 1024, 120000, 200000)
    assert storage.judge_quota(machine, *told).level == BAD
    told = storage.parse_quota(NFS)
    assert told == (8000000 * 1024, 10000000 * 1024, 120000, 0)
    assert storage.judge_quota(machine, *told).level == OK
    assert storage.judge_quota(machine, 95, 100, 0, 0).level == WARN
    assert storage.judge_quota(machine, 95, 0, 99, 100).level == WARN
    assert storage.judge_quota(machine, 95, 0, 99, 0).level == OK
    assert storage.parse_quota("none\n") is None
    assert one_of(storage.check_quota(made(tmp_path, mounts(("/", "ext4", "rw"))))).level == OK


def test_locks_are_tried_from_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They work here; where nobody sees them, that is bad beside the sockets; nothing stays behind."""
    machine = made(tmp_path)
    assert probing.try_lock(machine, str(tmp_path)) == ""
    monkeypatch.setattr(platform, "lock_owner", lambda path: None)
    assert "no other process" in probing.try_lock(machine, str(tmp_path))
    assert levels(probing.check_locks(made(tmp_path))) == [BAD, NOTE]
    monkeypatch.setattr(platform, "hold_lock", refuse_lock)
    assert "not supported" in probing.try_lock(machine, str(tmp_path))
    assert os.listdir(tmp_path) == []


def refuse_lock(path: str) -> None:
    Path(path).touch()
    raise OSError(37, "No locks available")


def test_the_disk_is_measured_and_judged(tmp_path: Path) -> None:
    """A real one leaves no file; a slow one is said to be."""
    assert one_of(probing.check_disk(made(tmp_path))).level in (OK, NOTE)
    assert os.listdir(tmp_path) == []
    assert probing.judge_disk(1e9, [0.001]).level == OK
    assert probing.judge_disk(1e9, [0.5]).level == NOTE
    assert probing.judge_disk(1e6, [0.001]).level == WARN


# -- memory and limits ---------------------------------------------------------------------------------------------------------

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("size", "free", "used", "level", "word"),
    [
        (32 * GB, 31 * GB, 0, OK, "a ring of 16 MiB"),
        (64 << 20, 60 * MB, 0, WARN, "a ring of 2 MiB instead of 16 MiB"),
        (64 << 20, 60 * MB, 8 << 20, WARN, "private memory"),
        (2 << 20, 0, 0, WARN, "private memory"),
        (600 << 20, 500 * MB, 0, NOTE, "on their way"),
        (32 * GB, 1 * GB, 0, NOTE, "others have taken"),
    ],
)
def test_shared_memory(tmp_path: Path, size: int, free: int, used: int, level: str, word: str) -> None:
    """From a large one to docker's 64 MB to one that others have filled."""
    found = memory.judge_shared_memory(made(tmp_path, {"/.dockerenv": ""}), size, free, used)
    assert found.level == level, found
    assert word in found.text


def test_no_shared_memory_at_all(tmp_path: Path) -> None:
    """A directory that is not there; one that is no memory."""
    missing = made(tmp_path, STEPD_SHARED_MEMORY_DIR=str(tmp_path / "none"))
    assert "does not survive kill -9" in one(memory.check_shared_memory(missing), WARN).text
    slow = made(tmp_path, mounts(("/", "ext4", "rw")), STEPD_SHARED_MEMORY_DIR=str(tmp_path))
    assert "not memory" in next(iter(memory.check_shared_memory(slow))).text


def test_rings_of_the_dead_are_counted(store: StoreIdentity, tmp_path: Path) -> None:
    """One that its process holds is none of them; one that was let go is."""
    machine = Machine(store.path)
    assert one_of(memory.check_rings(machine)).text == "none wait here"
    ring, _ = Ring.create("/dev/shm", platform.store_digest(store.path), 7, 1 << 16, {"run": "r", "store": store.id})
    assert one_of(memory.check_rings(machine)).level == OK
    platform.forget_lock(ring._descriptor)
    os.close(ring._descriptor)
    assert "1 ring of trainers that were killed" in one(memory.check_rings(machine), NOTE).text


def test_sockets_that_go_when_the_user_logs_out(tmp_path: Path) -> None:
    """Below /run/user, over ssh, without lingering."""
    place = "/run/user/1000/stepd-1000"
    over_ssh = {"SSH_CONNECTION": "1 2 3 4", "USER": "ada"}
    assert memory.judge_sockets(made(tmp_path, **over_ssh), place).mend == ("loginctl enable-linger",)
    assert memory.judge_sockets(made(tmp_path), place).level == OK
    assert memory.judge_sockets(made(tmp_path, **over_ssh), "/tmp/stepd-1000").level == OK
    lingering = made(tmp_path, {"/var/lib/systemd/linger/ada": ""}, **over_ssh)
    assert memory.judge_sockets(lingering, place).level == OK


def test_limits_of_the_shell(tmp_path: Path) -> None:
    """Each that is too low is told with what it costs and the line that raises it; for open files the hard one counts."""
    low = {limit.number: (1, 1) for limit in limits.LIMITS}
    found = list(limits.check_limits(made(tmp_path), lambda number: low.get(number, (0, 0))))
    assert levels(found) == [WARN] * len(limits.LIMITS) + [OK]
    assert found[0].mend == ("ulimit -n 1024",)
    soft = {limits.LIMITS[0].number: (64, 4096)}
    assert levels(limits.check_limits(made(tmp_path), lambda number: soft.get(number, (-1, -1)))) == [OK]
    in_docker = made(tmp_path / "docker", {"/.dockerenv": ""})
    assert (
        next(iter(limits.check_limits(in_docker, lambda _: (1, 1))))
        .mend[0]
        .startswith("docker run --ulimit nofile=1024")
    )


def test_cgroups_of_both_versions(tmp_path: Path) -> None:
    """The innermost limit counts, also above our own cgroup; version 1 says "none" by a huge number."""
    second = made(
        tmp_path / "2",
        {
            "/proc/self/cgroup": "0::/job/step\n",
            "/sys/fs/cgroup/job/memory.max": f"{8 << 30}\n", "/sys/fs/cgroup/job/memory.current": f"{7_900 << 20}\n",
            "/sys/fs/cgroup/job/step/memory.max": "max\n", "/sys/fs/cgroup/job/step/memory.events": "low 0\noom_kill 2\n",
            "/sys/fs/cgroup/pids.max": "100\n", "/sys/fs/cgroup/pids.current": "90\n",
        },
    )  # fmt: skip
    assert limits.read_group(second) == (8 << 30, 7_900 << 20, 100, 90, 2)
    assert levels(limits.check_group(second)) == [WARN, WARN, NOTE, OK]
    first = made(
        tmp_path / "1",
        {
            "/proc/self/cgroup": "4:pids:/\n3:memory:/docker/abc\n",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert one_of(limits.check_group(first)) == Finding(OK, "no limit of memory or processes")


# -- the machine's surroundings ------------------------------------------------------------------------------------------------


def test_containers(tmp_path: Path) -> None:
    """A training as PID 1 reaps nothing; a uid without a name and a HOME that cannot be written are told."""
    machine = made(
        tmp_path,
        {"/.dockerenv": "", "/proc/1/comm": "python\n", **mounts(("/", "overlay", "ro"))},
        uid=os.getuid(),
        STEPD_DIR="/runs",
    )
    found = list(surroundings.check_container(machine))
    assert one(found, NOTE).mend[0] == "docker run --init …"
    assert "read-only" in one(found, OK).text
    fine = made(tmp_path, {"/proc/1/comm": "tini\n"}, uid=os.getuid(), STEPD_DIR="/runs")
    assert levels(surroundings.check_container(fine)) == [OK]
    nameless = made(tmp_path, uid=3_999_999_999, STEPD_DIR="/runs")
    assert "has no name" in one(surroundings.check_container(nameless), NOTE).text


def test_launchers(tmp_path: Path) -> None:
    """Ranks that are not told to share a run, and a node's disk that is offered while the store is on a shared one."""
    assert levels(surroundings.check_launcher(made(tmp_path))) == [OK]
    ranks = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "job"}
    found = one(surroundings.check_launcher(made(tmp_path, **ranks)), NOTE)
    assert found.mend[0].startswith("export STEPD_RUN_ID=")
    assert levels(surroundings.check_launcher(made(tmp_path, **ranks, STEPD_RUN_ID="a"))) == [OK]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    files = mounts(("/", "lustre", "rw"), (str(scratch), "xfs", "rw"))
    in_job = made(tmp_path, files, SLURM_JOB_ID="7", SLURM_TMPDIR=str(scratch))
    assert "SLURM_TMPDIR" in one(surroundings.check_launcher(in_job), NOTE).text


def test_clocks() -> None:
    """One that was never set is bad; one that jumps, that nobody keeps, or that is slow is good to know."""
    now = 1_800_000_000.0
    assert levels(surroundings.judge_clock(0, now, 0, "tsc")) == [OK]
    assert levels(surroundings.judge_clock(0, 0.0, 0, "tsc")) == [BAD]
    assert levels(surroundings.judge_clock(0.5, now, 5, "hpet")) == [NOTE, NOTE, NOTE]
    assert levels(surroundings.judge_clock(0, now, -1, "")) == [OK]


def test_who_may_look_into_processes(tmp_path: Path) -> None:
    """ptrace_scope 1 without the capability, off altogether, SELinux's switch; with the capability all is well."""
    scope, status = "/proc/sys/kernel/yama/ptrace_scope", "/proc/self/status"
    plain, able = "CapEff:\t0000000000000000\n", "CapEff:\t000001ffffffffff\n"

    def found(name: str, files: dict[str, str]) -> Finding:
        return one_of(surroundings.check_tracing(made(tmp_path / name, files)))

    assert found("a", {scope: "1\n", status: plain}).mend == ("sudo sysctl kernel.yama.ptrace_scope=0",)
    assert found("b", {scope: "1\n", status: plain, "/.dockerenv": ""}).mend == ("docker run --cap-add SYS_PTRACE …",)
    assert found("c", {scope: "1\n", status: able}).level == OK
    assert found("d", {scope: "3\n", status: able}).level == NOTE
    selinux = {"/sys/fs/selinux/enforce": "1", "/sys/fs/selinux/booleans/deny_ptrace": "1 1"}
    assert "SELinux" in found("e", selinux).text


def test_the_kernel_and_gpus_here(tmp_path: Path) -> None:
    """Nothing that is looked at makes these checks fail, and no draft stays in shared memory."""
    machine = Machine(str(tmp_path))
    assert BAD not in levels(
        [*surroundings.check_kernel(machine), *surroundings.check_gpu(machine), *surroundings.check_clock(machine)]
    )
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(".stepd-doctor-")]


def test_gpus_whose_library_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without nvidia-ml-py is to mend, and the line says how."""
    from daemon.observe import gpu

    told = {"gpu_note": "nvidia-ml-py is not installed. Try: pip install nvidia-ml-py"}
    monkeypatch.setattr(gpu.Gpus, "describe", lambda self: told)
    monkeypatch.setattr(gpu, "has_nvidia", lambda: True)
    assert one_of(surroundings.check_gpu(made(tmp_path))) == (
        WARN,
        "nvidia-ml-py is not installed",
        ("pip install nvidia-ml-py",),
    )
    told.update(gpu_note="", gpus=[{"name": "A", "index": 0}] * 2, gpu_driver="555.1")  # type: ignore[arg-type]
    assert one_of(surroundings.check_gpu(made(tmp_path))).text == "2 GPUs, A, driver 555.1"


# -- the daemon and the environment --------------------------------------------------------------------------------------------

STATUS = {"version": __version__, "runs": [], "uptime_seconds": 3.0, "persistent": True}


def test_what_a_daemon_answers() -> None:
    """All well; another version; records that wait, with the daemon's own cure; failures and refused records."""
    assert levels(service.judge_status(STATUS, "")) == [OK]
    assert one(service.judge_status({**STATUS, "version": "0.0.1"}, "--dir x"), WARN).mend == ("stepd restart --dir x",)
    waits = one(service.judge_status({**STATUS, "warnings": ["the disk is full: 1 stream waits. Try: rm x"]}, ""), BAD)
    assert waits == (BAD, "the disk is full: 1 stream waits", ("rm x",))
    assert levels(service.judge_status({**STATUS, "sync_failures": 2, "refused": 5}, "")) == [WARN, WARN, OK]


def test_a_store_without_a_daemon(store: StoreIdentity, tmp_path: Path) -> None:
    """No store, none serving, one that was stopped, one that died of an error that its log ends with."""
    assert "no store yet" in one_of(service.check_daemon(made(tmp_path))).text
    machine = made(tmp_path, directory=store.path)
    assert one_of(service.check_daemon(machine)).level == OK
    log = Path(store.path) / "daemon.log"
    log.write_text("x\nTraceback (most recent call last):\n  File 'a'\n    b\nImportError: no zmq\n")
    assert "ImportError: no zmq" in one(service.check_daemon(machine), WARN).text
    log.write_text(f"{log.read_text()}2026 serving again\n2026 leaving\n")
    assert one_of(service.check_daemon(machine)).level == OK
    _spawn.mark_stopped(store.path, True)
    assert "stepd start" in one(service.check_daemon(machine), NOTE).mend[0]


def test_a_daemon_that_was_killed(store: StoreIdentity, tmp_path: Path) -> None:
    """A log that ends without goodbye, of the process that held the lock last on this host, is that of one that was killed."""
    machine = made(tmp_path, directory=store.path)
    log, lock = Path(store.path) / "daemon.log", Path(known_lock_path(store.path))
    served = f"2026 INFO serving {store.path}, pid 41, version 1\n2026 INFO run a41f\n"
    log.write_text("2026 INFO serving x, pid 40, version 1\n2026 INFO leaving\n" + served)
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        for said in ("", "[]", "[" * 10_000, '{"pid": 40}', '{"pid": null}'):
            lock.write_text(said)
            assert one_of(service.check_daemon(machine)).level == OK
        lock.write_text('{"pid": 41}')
        told = one(service.check_daemon(machine), WARN)
        assert "process 41, was killed" in told.text
        assert told.text.endswith("Its last line: 2026 INFO run a41f")
        log.write_text(f"{served}2026 INFO leaving\n")
        assert one_of(service.check_daemon(machine)).level == OK
        log.unlink()
        assert one_of(service.check_daemon(machine)).level == OK
    finally:
        lock.unlink()


def test_variables_that_mean_nothing_or_cannot_be(tmp_path: Path) -> None:
    """A slip gets the nearest name, a wrong value what was expected; a right one is listed."""
    found = list(variables.check_variables(made(tmp_path, STEPD_RING_BITES="1", STEPD_MODE="onlin", STEPD_DIR="/x")))
    assert "STEPD_RING_BYTES would" in one(found, WARN).text
    assert "expected 'online'" in one(found, BAD).text
    assert one(found, OK).text == "STEPD_DIR"
    assert one_of(variables.check_variables(made(tmp_path))).text == "no STEPD_ variable is set"


def test_every_variable_that_the_code_reads_is_known() -> None:
    """So that none of ours is ever called unknown."""
    words = set().union(*(
        re.findall(r"""["'\[](STEPD_[A-Z_]*[A-Z])["'\]]""", path.read_text(encoding="utf-8"))
        for path in itertools.chain((ROOT / "sdk").rglob("*.py"), (ROOT / "daemon").rglob("*.py"))
    ))  # fmt: skip
    assert words
    assert {word for word in words if not word.startswith("STEPD_TEST")} <= set(variables.known())
    assert len(variables.known()) == len(FIELDS) + len(variables.OTHERS)


def test_wandb_variables_that_count_here(tmp_path: Path) -> None:
    """Taken, behind ours, for carrying only, and of no use."""
    environ = {
        "WANDB_PROJECT": "p", "WANDB_NAME": "n", "STEPD_NAME": "m", "WANDB_API_KEY": "k", "WANDB_ENTITY": "e", "WANDB_MODE": "?",
    }  # fmt: skip
    found = list(variables.check_wandb(made(tmp_path, **environ)))
    assert "WANDB_MODE" in one(found, BAD).text
    assert one(found, OK).text == (
        "taken: WANDB_MODE, WANDB_PROJECT; for stepd sync --to wandb: WANDB_API_KEY; not used: WANDB_ENTITY, WANDB_NAME (behind STEPD_NAME)"
    )


def test_settings_and_where_they_come_from(tmp_path: Path) -> None:
    """What is not the default with its variable; runs that are disabled by one are bad."""
    text = one(variables.check_settings(made(tmp_path, STEPD_RING_BYTES="1M", WANDB_PROJECT="p")), OK).text
    assert (
        text == "project=p (WANDB_PROJECT); ring_bytes=1048576 (STEPD_RING_BYTES); all else as sdk/settings.py has it"
    )
    disabled = one(variables.check_settings(made(tmp_path, WANDB_DISABLED="true")), BAD)
    assert disabled.mend == ("unset WANDB_DISABLED",)
    assert one_of(variables.check_settings(made(tmp_path))).text == "all defaults"
    assert levels(variables.check_settings(made(tmp_path, STEPD_RING_BYTES="many"))) == [NOTE]


# -- measured, and the page ----------------------------------------------------------------------------------------------------


def test_what_is_said_of_measured_times(tmp_path: Path) -> None:
    """As quick as it should be, slow, a ring too small for a tight loop, and a row that never came."""
    machine = made(tmp_path, {"/.dockerenv": ""})
    good = measuring.Measured(0.2, [1100] * 100, 0.0002, 0.05, measuring.CALLS + measuring.WARM_CALLS, 0, 0.01)
    assert levels(measuring.judge(machine, good)) == [OK, OK, OK]
    assert next(iter(measuring.judge(machine, good))).text.startswith("p50 1.10, p99 1.10, max 1 µs: 220 ns a value")
    assert levels(measuring.judge(machine, good._replace(calls=[9_000] * 100))) == [NOTE, OK, OK]
    assert levels(measuring.judge(machine, good._replace(calls=[90_000] * 100))) == [WARN, OK, OK]
    small = good._replace(read_back=good.read_back - 7, refused=9)
    assert one(measuring.judge(machine, small), WARN).mend[0].startswith("docker run --shm-size")
    assert levels(measuring.judge(machine, good._replace(read_back=7))) == [OK, OK, BAD]
    assert levels(measuring.judge(machine, good._replace(seen=float("inf")))) == [OK, OK, BAD]


def test_what_is_expected_is_what_the_page_on_performance_has() -> None:
    """p50 and p99 of five metrics in a tight loop."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| **stepd** | 5 | tight |"))
    numbers = [float(cell.strip(" *")) for cell in row.split("|")[4:6]]
    assert numbers == [measuring.EXPECTED_P50, measuring.EXPECTED_P99]


def test_the_page_lists_every_check() -> None:
    """docs/doctor.md has a row for each, in order, with the same words, and its example a line for each."""
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `([^`]+)` \| ([^|]+) \|$", text, re.MULTILINE)
    assert rows == [(check.group, check.name, check.about) for check in CHECKS]
    example = text.partition("```\n$ stepd doctor\n")[2].partition("```")[0]
    assert re.findall(r"^  [✓·!✗] (\S.{11}) ", example, re.MULTILINE) == [f"{check.name:<12}" for check in CHECKS]


def test_a_mount_is_what_it_says() -> None:
    """A line without the separator, or with too few words, is none."""
    from daemon.doctor.machine import _parse

    assert _parse("36 35 98:0 / /mnt rw master:1 - ext4 /dev/sda ro,discard") == Mount(
        "/mnt", "ext4", "/dev/sda", frozenset({"rw", "ro", "discard"})
    )
    assert _parse("36 35 98:0 / /mnt rw") is None
