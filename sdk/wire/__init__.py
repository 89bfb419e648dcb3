"""The wire between a trainer and its daemon, without any network in it. `docs/wire.md` is the specification.

What may live here: messages, their bytes (`codec`), and the legal order of things (`session`): bytes in, bytes out, no
socket, no clock, no thread. If you change this folder, change docs/wire.md and think of the version before.
"""
