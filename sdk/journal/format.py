"""Constants of the ring, version 1. Constants only: if you change this file, change docs/journal.md.

The first page is the header; the data behind it is a window of the stream's bytes: the byte at position p of the stream
stands at ``HEADER_BYTES + p % capacity``. Positions only grow. Words are little-endian u64 at 8-byte boundaries.

Head is one word, because `log()` stores it and has no time for more. Everything else in the page stands there twice or
carries a CRC, so that a kill between two stores or a flipped bit leaves one good copy.
"""

from __future__ import annotations

import struct

HEADER_BYTES = 4096
CAPACITY_MIN = 256 * 1024

# Indices of the words in the header page (multiply by 8 for the byte offset).
WORD_HEAD = 0  # written by the trainer's log(): everything before this position is published
WORD_SESSION = 1  # the session that may read this ring from another process, as its Hello names it; 0: none may
WORD_GATE = 2  # such a reader takes nothing from this position on, which stands here plus one; 0: up to head
WORD_RELEASED = 8  # everything before this position may be overwritten; unchecked, see RELEASED_COPIES
WORD_REFUSED = 16  # records refused since the ring was made; the first of the words of REFUSALS
WORD_EPISODE = 17  # number of the current or last time of refusing, from 1
WORD_EPISODE_COUNT = 18
WORD_EPISODE_STEP_MIN = 19
WORD_EPISODE_STEP_MAX = 20
WORD_EPISODE_START_NS = 21
WORD_EPISODE_END_NS = 22
WORD_REPORTED = 23  # the last episode that a GAP record in the stream tells of
WORD_REASON = 24  # why calls are refused in this episode: an index into `sdk.limits.REFUSED_REASONS`
WORD_BEAT = 60  # written by who reads this ring from another process: grows as long as it does; 0: it has stopped
WORD_ASKED = 61  # written by another process of the same user that asks something: the number of the question
WORD_ANSWERED = 62  # written by the sender: the last question answered; 0: nobody listens yet, 1: nothing was asked yet
WORD_THREAD = 63  # written by the sender: its thread, as the kernel numbers it
WORDS = 64
# In WORD_ANSWERED: this process answers nobody.
ANSWERS_NOBODY = 2**64 - 1

# The words of what was refused and of what is released, each written first to one place and then to the other, and
# followed by a check word, the CRC-32 of the words before it.
REFUSALS = struct.Struct("<9Q")
REFUSALS_COPIES = (WORD_REFUSED, 32)
# position, next sequence, open step: of the first record that is not released.
RELEASED = struct.Struct("<3Q")
RELEASED_COPIES = (48, 56)
CHECK = struct.Struct("<Q")
# Written by who reads this ring from another process: what it has stored, and how it is. The position, sequence and open
# step of the first record that is not stored; the last forced sequence; why nothing more is stored (`REFUSED_REASONS`).
TAKEN = struct.Struct("<5Q")
TAKEN_COPIES = (26, 42)

# The static part, also twice.
STATIC_OFFSET = 512
STATIC_SECOND_OFFSET = 1280
STATIC_ROOM = 768
STATIC_MAGIC = b"\x89STPR1\r\n"
# magic, version u16, reserved u16, identity size u32, capacity u64, stream u64, CRC of these 32 bytes and the identity.
STATIC = struct.Struct("<8sHHIQQI")
VERSION = 1

# The table of checksums over what waits, to the end of the page.
CHUNKS_OFFSET = 2048
# start and end position, first and next sequence, open step before and after, CRC of the bytes, CRC of these 52 bytes.
CHUNK = struct.Struct("<6QII")
CHUNKS = 36

SUFFIX = ".ring"
# A ring that is being made: not locked yet, so nobody may judge it by its lock.
DRAFT_SUFFIX = ".new"
# An answer to a question: made and removed by who asks, filled by the trainer.
ANSWER_SUFFIX = ".answer"
