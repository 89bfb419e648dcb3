"""Constants of the ring, version 1. Constants only: if you change this file, change docs/journal.md.

The first page is the header; the data behind it is a window of the stream's bytes: the byte at position p of the stream
stands at ``HEADER_BYTES + p % capacity``. Positions only grow. Words are little-endian u64 at 8-byte boundaries, each
written with one aligned store by one side only.
"""

from __future__ import annotations

import struct

HEADER_BYTES = 4096
CAPACITY_MIN = 256 * 1024

# Indices of the words in the header page (multiply by 8 for the byte offset).
WORD_HEAD = 0  # written by the trainer's log(): everything before this position is published
WORD_RELEASED = 8  # written by whoever stores: everything before this position may be overwritten
WORD_REFUSED = 16  # records refused since the ring was made
WORD_EPISODE = 17  # number of the current or last time of refusing, from 1
WORD_EPISODE_COUNT = 18
WORD_EPISODE_STEP_MIN = 19
WORD_EPISODE_STEP_MAX = 20
WORD_EPISODE_START_NS = 21
WORD_EPISODE_END_NS = 22
WORD_REPORTED = 23  # the last episode that a GAP record in the stream tells of
WORDS = 32

STATIC_OFFSET = 256
STATIC_MAGIC = b"\x89STPR1\r\n"
# magic, version u16, reserved u16, identity size u32, capacity u64, stream u64, CRC of these 32 bytes and the identity.
STATIC = struct.Struct("<8sHHIQQI")
VERSION = 1

SUFFIX = ".ring"
# A ring that is being made: not locked yet, so nobody may judge it by its lock.
DRAFT_SUFFIX = ".new"
