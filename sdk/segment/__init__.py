"""The segment: one append-only container file of blocks. `docs/segment.md` is the specification.

What may live here: the bytes of the format and nothing that knows about daemons, runs in general or queries.
`format` holds the constants and `headers` the fixed parts as bytes that writer and reader share. Of a damaged segment `reader`
gives what is good, `check` tells all that is wrong, `recovery` seals what a dead writer left open, `repair` writes a new one.
"""
