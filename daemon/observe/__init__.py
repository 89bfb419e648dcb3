"""Looking at a training from outside: its processes, its machine, its GPUs, its code.

What is here reads the operating system, drivers and the user's files, and returns plain values; how often that happens,
and where it is stored, is `daemon.observer`'s business. Nothing here may wait without a limit.
"""
