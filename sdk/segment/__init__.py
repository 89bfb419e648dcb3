"""The segment: one append-only container file of blocks. `docs/segment.md` is the specification.

What may live here: the bytes of the format and nothing that knows about daemons, runs in general or queries.
`format` holds the constants that writer and reader share; neither imports the other.
"""
