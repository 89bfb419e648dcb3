"""Taking records in: from the socket and from the rings of the dead, through segments, to acks.

What may live here: what happens to a stream between a trainer's message and its ack. Deciding when is
`daemon.pipeline`, the bytes on disk are `daemon.store`, the life of the process is `daemon.server`.

`core` is what the server drives, a tick at a time; `streams` the table they all share; `router` the one door to ZeroMQ;
`sessions` what messages mean; `writing` blocks and acks; `forcing` fsync and what follows one that fails; `dead` the rings
of killed trainers. Everything runs in the server's thread.
"""

from daemon.ingest.core import Ingest

__all__ = ["Ingest"]
