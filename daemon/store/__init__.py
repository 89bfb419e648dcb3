"""What the daemon keeps on disk: segments of the runs it serves, and what it repairs after the dead.

What may live here: writing to a store. Reading is `sdk.reader`; nothing here decides when to write (`daemon.pipeline`).
"""
