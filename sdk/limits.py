"""The numbers that both ends of a wire or a file must share, each beside the arithmetic that justifies it.

What one process may choose for itself is a setting (`sdk.settings`), not a limit. The two limits that are negotiated
travel in Hello and Welcome; each side then uses the smaller value.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

WIRE_VERSION = 1
WIRE_VERSION_MIN = 1

# Limit: one batch is what a tight loop logs in a wake of the sender: 110 bytes x 0.7 M/s x 40 ms = 3 MiB.
BATCH_BYTES_MAX = 4 * MIB
# Limit: ZMQ_MAXMSGSIZE. A larger message makes libzmq drop the peer and what is queued behind it, so it must exceed the
# largest message that we send (one batch, its header and body) with room; twice is simple.
MESSAGE_BYTES_MAX = 2 * BATCH_BYTES_MAX
MESSAGE_BODY_BYTES_MAX = 1 * MIB
# Limit: bytes of one stream that the daemon has not acknowledged. 3 batches cover the round trip (guide, chapter 7: 3-5
# in flight); 16 streams x 12 MiB bound the daemon's receive memory at 192 MiB.
CREDIT_BYTES = 12 * MIB

# Limit: one ROWS block before compression. Larger blocks compress no better and cost more to lose or to look into.
BLOCK_ROWS_BYTES_MAX = BATCH_BYTES_MAX
# Limit: what a reader accepts of a block header before it allocates anything.
BLOCK_STORED_BYTES_MAX = 64 * MIB
BLOCK_RAW_BYTES_MAX = 256 * MIB
# An lz4 block cannot expand more than this (format: 255 bytes of match length for each byte).
LZ4_RATIO_MAX = 255

SEGMENT_ROWS_BYTES = 8 * MIB
# Limit: one blob. Sizes come from records and files, so they are checked before anything is allocated.
BLOB_BYTES_MAX = 1 << 40
# Limit: one file of blobs. The encoder's turn comes when it is full: a second of large tensors, some minutes of images.
SEGMENT_MEDIA_BYTES = 256 * MIB

# Limit: nesting of dicts and lists in one value. msgpack's own C recursion stops at 511; readable data stops far before.
NESTING_MAX = 64
# Limit: media values inside of one another (a table's images have masks: 3). Reading takes 40 KiB of stack for each.
MEDIA_NESTING_MAX = 16
KEY_BYTES_MAX = 4096
# Limit: one value stored inside a record (`sdk.values` decides what happens to larger ones).
INLINE_TENSOR_BYTES_MAX = 16 * KIB
# Limit: one msgpack map, a record's payload or a segment's index, before it is decoded: a byte of it can make an object of
# 64 bytes, so that the worst one takes 1 GiB of a reader's memory. Ours are far smaller: a record at most 2 MiB.
MAP_BYTES_MAX = 16 * MIB
# Limit: what flattening may add to one row by repeating the names of outer dicts: 2 MiB can be 500 levels, each of 4 kB,
# over 100 000 values.
FLAT_NAMES_BYTES_MAX = 64 * MIB

RUN_ID_CHARACTERS_MAX = 128
PROJECT_CHARACTERS_MAX = 128
TAG_CHARACTERS_MAX = 64
STEP_MAX = 2**63 - 1
# Limit: a step that a caller may give. Counting on from it, one a call, never reaches STEP_MAX: 2**62 us are 146 000 years.
STEP_GIVEN_MAX = 2**62

# Why calls were refused: indices that ring header, Ack and GAP records share. New ones are added at the end.
REFUSED_REASONS = (
    "ring full", "spool_bytes_max", "disk full", "free_bytes_min", "store_bytes_max", "run_bytes_max", "disk error",
    "a device was not ready",
)  # fmt: skip
REFUSED_SPOOL, REFUSED_DISK_FULL, REFUSED_FREE, REFUSED_STORE, REFUSED_RUN, REFUSED_DISK_ERROR, REFUSED_DEVICE = range(
    1, 8
)
# Those that forbid the spool as well: it would fill the same disk.
BUDGET_REASONS = frozenset({REFUSED_FREE, REFUSED_STORE, REFUSED_RUN})

# Limit: what stays free on a store's disk unless somebody says otherwise: enough for a small checkpoint and the records of
# some minutes, and on a small file system never more than this share of it.
FREE_BYTES_MIN = 64 * MIB
FREE_SHARE_MAX = 16
