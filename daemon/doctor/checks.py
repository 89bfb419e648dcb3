"""All checks in their order, which is that of what they cost. docs/doctor.md has the same table (tests/daemon/test_doctor.py)."""

from __future__ import annotations

from daemon.doctor.running import Check

CHECKS = (
    Check("Names", "python", "names:check_python", "version, implementation, 64 bit, free threading"),
    Check("Names", "packages", "names:check_packages", "what is needed can be imported; which optional ones are missing"),
    Check("Names", "commands", "names:check_commands", "whose `stepd` and `daemon` come first on `PATH`"),
    Check("Names", "imports", "names:check_imports", "whose `sdk` and `daemon` are imported, in this directory and elsewhere"),
    Check("Names", "twins", "names:check_twins", "python-daemon, which has our import name; several versions of stepd"),
    Check("Store", "store", "storage:check_store", "which directory, what chose it, whose it is, whether it can be written"),
    Check("Store", "file system", "storage:check_file_system", "a disk, memory, a container's layer, NFS, Lustre, object storage, …"),
    Check("Store", "space", "storage:check_space", "free bytes, and below how many records are refused; budgets"),
    Check("Store", "inodes", "storage:check_inodes", "how many more files may be made"),
    Check("Store", "quota", "storage:check_quota", "of this user: `quotactl`, or the commands `quota` (NFS) and `lfs` (Lustre)"),
    Check("Store", "locks", "probing:check_locks", "record locks, seen from another process, beside the sockets and in the store"),
    Check("Store", "disk", "probing:check_disk", "speed of writing, time of an fsync (0.3 s), the clock that stamps files", 10.0),
    Check("Memory", "shared", "memory:check_shared_memory", "`/dev/shm`: size, what is free, the ring that a run would get"),
    Check("Memory", "rings", "memory:check_rings", "rings of trainers of this store that were killed"),
    Check("Memory", "sockets", "memory:check_sockets", "the directory of sockets and locks, and whether it stays"),
    Check("Machine", "limits", "limits:check_limits", "`ulimit`: files, processes, address space, size of a file, CPU time"),
    Check("Machine", "cgroup", "limits:check_group", "memory and processes of the container or job; what the OOM killer took"),
    Check("Machine", "container", "surroundings:check_container", "its kind, first process and root; `HOME`, the user's name"),
    Check("Machine", "launcher", "surroundings:check_launcher", "torchrun, Slurm, MPI: rank, run, disks of the node"),
    Check("Machine", "clock", "surroundings:check_clock", "goes forward, is kept in time, is cheap to read"),
    Check("Machine", "kernel", "surroundings:check_kernel", "files in memory, room ahead of need, `/proc`, this machine's id"),
    Check("Machine", "tracing", "surroundings:check_tracing", "whether py-spy may look into a process: ptrace scope, SELinux"),
    Check("Machine", "gpu", "surroundings:check_gpu", "driver, the library that asks it, what is seen", 8.0),
    Check("Daemon", "daemon", "service:check_daemon", "serves, was stopped, was killed, or none; its version, warnings, failures"),
    Check("Daemon", "variables", "variables:check_variables", "`STEPD_*`: unknown ones with the nearest name, wrong values"),
    Check("Daemon", "wandb", "variables:check_wandb", "`WANDB_*`: which ones count here"),
    Check("Daemon", "settings", "variables:check_settings", "what is not the default, and where it comes from; whether anything is stored"),
    Check("Measured", "log()", "measuring:check_log", "20 000 calls, an image, and a row from `log()` to a reader", 40.0, True),
)  # fmt: skip
