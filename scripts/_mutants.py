"""The bugs that `mutants.py` plants: each one exact text of the product, what it becomes, and the tests that must notice."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One bug.

    Attributes:
        name: What is broken, in words.
        file: Where.
        old, new: The text as it stands, exactly once in the file, and the bug.
        tests: What must fail: arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _torture(name: str) -> str:
    return f"tests/torture/test_torture.py::test_torture[{name}]"


MUTANTS = (
    # -- the daemon -----------------------------------------------------------------------------------------------------
    Mutant(
        "ack before write",
        "daemon/ingest/writing.py",
        "                payload = coalesce(parts)\n",
        "                state.inbox.written = parts[-1].last\n                payload = coalesce(parts)\n",
        ("tests/daemon/test_ingest_disk.py",),
    ),
    Mutant(
        "a stream is finished before its records are written",
        "daemon/ingest/writing.py",
        "if state.finishing is not None and inbox.written >= state.finishing:",
        "if state.finishing is not None:",
        ("tests/daemon/test_ingest_budget.py::test_what_a_finishing_stream_accepted_is_stored",),
    ),
    Mutant(
        "a dead trainer's ring is removed before its records are written",
        "daemon/ingest/dead.py",
        "        if state.waiting or not self._note_losses(",
        "        if not self._note_losses(",
        ("tests/daemon/test_ingest_dead.py::test_a_dead_ring_waits_for_the_disk",),
    ),
    Mutant(
        "calls that the dead refused become no GAP",
        "sdk/journal/drain.py",
        "        gaps.append(refused)\n",
        "        pass\n",
        ("tests/sdk/test_drain.py",),
    ),
    Mutant(
        "a failed fsync is forgotten and the file forced again",
        "daemon/store/syncer.py",
        "                self._failed[segment] = error\n",
        "",
        ("tests/daemon/test_syncer.py", "tests/daemon/test_ingest_fsync.py"),
    ),
    Mutant(
        "a failed fsync counts as a good one",
        "daemon/store/syncer.py",
        "                self._failed[segment] = error\n                raise\n",
        "                self._failed[segment] = error\n",
        ("tests/daemon/test_ingest_fsync.py",),
    ),
    Mutant(
        "names of new files are not forced",
        "daemon/store/syncer.py",
        "                    sync_names(self._files, job.directory, RUN_LEVELS)\n",
        "                    pass\n",
        (_torture("crash-states"),),
    ),
    Mutant(
        "a sync from before a failure claims what it lost",
        "daemon/ingest/forcing.py",
        "if job.generation == writer.generation and job.written is not None:",
        "if job.written is not None:",
        ("tests/daemon/test_ingest_fsync.py",),
    ),
    Mutant(
        "what others wrote is claimed without being forced",
        "daemon/ingest/forcing.py",
        "if state is not None and state.base is Base.FORCED and last > state.inbox.synced:",
        "if state is not None and last > state.inbox.synced:",
        ("tests/daemon/test_ingest_fsync.py",),
    ),
    Mutant(
        "CHECKPOINT is not written",
        "daemon/store/run_writer.py",
        '            opening.append((KIND_CHECKPOINT, {"streams": streams}))\n',
        "",
        ("tests/daemon/test_run_writer.py", "tests/daemon/test_ingest_fsync.py"),
    ),
    Mutant(
        "what a failed fsync made doubtful is not written again",
        "daemon/store/run_writer.py",
        "            self.trust = Trust.REWRITING if self._doubtful else Trust.GOOD\n",
        "            self._doubtful.clear()\n            self.trust = Trust.GOOD\n",
        ("tests/daemon/test_run_writer.py", "tests/daemon/test_ingest_fsync.py"),
    ),
    Mutant(
        "budgets are ignored",
        "sdk/budget.py",
        "    if budget.run_bytes_max and use.run_bytes is not None and use.run_bytes >= budget.run_bytes_max:\n",
        "    if False:\n",
        ("tests/sdk/test_budget.py", "tests/daemon/test_ingest_budget.py"),
    ),
    Mutant(
        "other users are let in",
        "daemon/ingest/router.py",
        "            socket.set(zmq.IPC_FILTER_UID, os.getuid())\n",
        "",
        ("tests/daemon/test_router.py",),
    ),
    Mutant(
        "messages may have any size",
        "daemon/ingest/router.py",
        "        socket.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)\n",
        "",
        ("tests/daemon/test_router.py",),
    ),
    Mutant(
        "two daemons may serve one store",
        "daemon/server.py",
        "    lock = take_store(store.path, __version__)\n    if lock is None:\n        return 0\n",
        '    lock = take_store(store.path, __version__)\n    if lock is None:\n        lock = platform.hold_lock(store.path + ".other")\n',
        ("tests/daemon/test_server_commands.py::test_a_second_one_leaves_at_once",),
    ),
    Mutant(
        "coalescing loses the last sequence",
        "daemon/pipeline/coalesce.py",
        "    first, last = waiting[0].first, waiting[-1].last\n    batch_flags = 0\n",
        "    first, last = waiting[0].first, waiting[-1].last - 1\n    batch_flags = 0\n",
        ("tests/daemon/test_coalesce.py",),
    ),
    Mutant(
        "batches with a hole between them share a block",
        "daemon/pipeline/coalesce.py",
        "if part.first != before.last + 1 or size > BLOCK_ROWS_BYTES_MAX:",
        "if size > BLOCK_ROWS_BYTES_MAX:",
        ("tests/daemon/test_coalesce.py", "tests/daemon/test_ingest.py"),
    ),
    Mutant(
        "an open row is left out when pieces are merged",
        "daemon/pipeline/coalesce.py",
        "        for key in values:\n            keys[key] = keys.get(key, 0) + 1\n        payload = encode(values)\n",
        "        if not row_flags:\n            continue\n        for key in values:\n"
        "            keys[key] = keys.get(key, 0) + 1\n        payload = encode(values)\n",
        ("tests/daemon/test_coalesce.py",),
    ),
    Mutant(
        "an older session of a stream is still served",
        "daemon/ingest/streams.py",
        "            self._of_peer.pop(state.identity, None)\n        state.identity = peer\n",
        "            pass\n        state.identity = peer\n",
        ("tests/daemon/test_ingest.py::test_batches_of_an_old_session_are_not_taken",),
    ),
    Mutant(
        "what could not be understood counts as received",
        "daemon/ingest/streams.py",
        "            self.inbox.received = before  # else they would count as received, and be acked with what follows\n",
        "",
        ("tests/daemon/test_ingest.py::test_an_overlap_with_bent_records_is_not_acked",),
    ),
    # -- the session ----------------------------------------------------------------------------------------------------
    Mutant(
        "sequence off by one: the daemon takes what follows a missing record",
        "sdk/wire/session.py",
        "        if first > self.received + 1:\n",
        "        if first > self.received + 2:\n",
        ("tests/sdk/test_wire_session.py",),
    ),
    Mutant(
        "duplicates are taken again",
        "sdk/wire/session.py",
        "        skip = min(self.received - first + 1, last - first + 1)\n",
        "        skip = 0\n",
        ("tests/sdk/test_wire_session.py", "tests/daemon/test_ingest.py"),
    ),
    Mutant(
        "an ack of a part releases the whole batch",
        "sdk/wire/session.py",
        "self._in_flight[0][1] - 1 <= written:",
        "self._in_flight[0][1] - 2 <= written:",
        ("tests/sdk/test_wire_session.py",),
    ),
    Mutant(
        "a new session does not repeat what was in flight",
        "sdk/wire/session.py",
        "        self.sent = self.stored\n        self._in_flight.clear()\n        self._credit = credit\n",
        "        self._in_flight.clear()\n        self._credit = credit\n",
        ("tests/sdk/test_wire_session.py", "tests/sdk/test_sender.py"),
    ),
    Mutant(
        "credit is ignored",
        "sdk/wire/session.py",
        "room = min(bytes_max, self._credit - self.in_flight_bytes)",
        "room = bytes_max",
        ("tests/sdk/test_wire_session.py",),
    ),
    Mutant(
        "the CRC of a batch is not checked",
        "sdk/wire/codec.py",
        " or zlib.crc32(payload) != payload_crc:",
        ":",
        ("tests/sdk/test_wire_codec.py",),
    ),
    # -- the trainer ----------------------------------------------------------------------------------------------------
    Mutant(
        "reconnect is left to libzmq",
        "sdk/_sender.py",
        "        if silence > SILENCE_SECONDS:\n            return True\n",
        "        if silence > SILENCE_SECONDS:\n            return False\n",
        ("tests/sdk/test_sender.py::test_silence_with_bytes_in_flight_begins_a_new_session",),
    ),
    Mutant(
        "what was sent is released before it is acked",
        "sdk/_sender.py",
        "        self._journal.release(self._outbox.stored)\n",
        "        self._journal.release(self._outbox.sent)\n",
        ("tests/sdk/test_sender.py",),
    ),
    Mutant(
        "the end of a stream does not wait for its last record",
        "sdk/_sender.py",
        "        last = self._journal.mark()[1] - 1\n        try:\n",
        "        last = self._journal.mark()[1] - 2\n        try:\n",
        ("tests/sdk/test_sender.py",),
    ),
    Mutant(
        "a spool that was never forced counts as synced",
        "sdk/_sender.py",
        "outbox.synced if self._spool.is_safe else min(outbox.synced, self._spool.first - 1)",
        "outbox.synced",
        ("tests/sdk/test_sender.py",),
    ),
    Mutant(
        "a ring is removed at the end although not all of it is stored",
        "sdk/_stream.py",
        "self._let_go(is_stored=is_stored)",
        "self._let_go(is_stored=True)",
        ("tests/end_to_end/test_away.py", "tests/end_to_end/test_bad_luck.py"),
    ),
    Mutant(
        "the head is published before the payload",
        "sdk/journal/appender.py",
        "                data[start + HEADER_SIZE : start + size] = payload\n                mark =",
        "                words[WORD_HEAD] = tail\n"
        "                data[start + HEADER_SIZE : start + size] = payload\n                mark =",
        (_torture("ring-killed"),),
    ),
    Mutant(
        "the wrap of the ring is off by eight",
        "sdk/journal/appender.py",
        "            upto = capacity - start\n",
        "            upto = capacity - start - 8\n",
        ("tests/sdk/test_appender.py",),
    ),
    Mutant(
        "log() may overwrite what waits",
        "sdk/journal/appender.py",
        "            room_until = released + capacity - reserved\n",
        "            room_until = released + capacity + 8\n",
        ("tests/sdk/test_appender.py",),
    ),
    Mutant(
        "rows take the room of the run's end",
        "sdk/journal/appender.py",
        "    mask, record_max, reserved = _measures(capacity)\n    pack_words",
        "    mask, record_max, reserved = _measures(capacity)\n    reserved = 0\n    pack_words",
        ("tests/end_to_end/test_bad_luck.py",),
    ),
    Mutant(
        "room is given to log() before the ring says so",
        "sdk/journal/appender.py",
        "            journal.ring.write_released(stored)\n            released = stored[0]\n",
        "            released = stored[0]\n            journal.ring.write_released(stored)\n",
        ("tests/sdk/test_appender.py",),
    ),
    Mutant(
        "log()'s lock is released early",
        "sdk/journal/appender.py",
        "                data[start + HEADER_SIZE : start + size] = payload\n                mark =",
        "                lock.release()\n                data[start + HEADER_SIZE : start + size] = payload\n"
        "                lock.acquire()\n                mark =",
        ("tests/sdk/test_appender.py::test_two_threads_with_values_that_need_the_hook",),
    ),
    Mutant(
        "Ctrl-C may come between the mark and the payload",
        "sdk/journal/appender.py",
        "                data[start + HEADER_SIZE : start + size] = payload\n                mark = (tail, sequence + 1, open_step)\n",
        "                mark = (tail, sequence + 1, open_step)\n                now()\n"
        "                data[start + HEADER_SIZE : start + size] = payload\n",
        ("tests/sdk/test_appender.py::test_ten_thousand_interrupts",),
    ),
    Mutant(
        "a call that an interrupt left is made again",
        "sdk/journal/calls.py",
        "    return inner is not None and inner.tb_frame.f_code is not ours\n",
        "    return False\n",
        ("tests/sdk/test_appender.py::test_a_call_that_was_interrupted_is_not_made_again",),
    ),
    Mutant(
        "what was read of a ring is believed after it was taken back",
        "sdk/journal/lent.py",
        "        if not self.is_lent():\n            return None\n",
        "",
        ("tests/sdk/test_lending.py::test_a_ring_that_was_taken_back_is_not_believed",),
    ),
    Mutant(
        "an announcement is read before its bytes are stored",
        "sdk/journal/lent.py",
        "        return min(head, gate - 1) if gate else head\n",
        "        return head\n",
        ("tests/sdk/test_lending.py::test_private_values_wait_at_the_gate",),
    ),
    Mutant(
        "what a daemon took is drained again",
        "sdk/journal/drain.py",
        "        released = taken.mark\n",
        "        pass\n",
        ("tests/sdk/test_lending.py::test_both_killed",),
    ),
    Mutant(
        "a forked child writes into its parent's ring",
        "sdk/journal/appender.py",
        "        limit, child_ring = 0, make\n",
        "",
        ("tests/sdk/test_appender.py::test_a_forked_child_goes_on_in_its_own_ring",),
    ),
    Mutant(
        "refused calls are not counted in the ring",
        "sdk/journal/appender.py",
        "        refusals = refusals.counted(row, now(), why or reason)\n        journal.ring.write_refusals(refusals)\n",
        "        refusals = refusals.counted(row, now(), why or reason)\n",
        ("tests/sdk/test_appender.py", "tests/sdk/test_drain.py"),
    ),
    Mutant(
        "refused calls become no GAP",
        "sdk/journal/appender.py",
        "        place(KIND_GAP, 0, payload, mark[2], mark[2], piece=False)\n",
        "",
        ("tests/sdk/test_appender.py::test_each_time_of_refusing_is_an_episode_of_its_own",),
    ),
    Mutant(
        "a late record loses its step",
        "sdk/journal/appender.py",
        "            flags |= FLAG_LATE\n            after = open_step\n",
        "            row = open_step\n            after = open_step\n",
        ("tests/sdk/test_appender.py",),
    ),
    Mutant(
        "a late record is dropped in silence",
        "sdk/journal/appender.py",
        "            flags |= FLAG_LATE\n            after = open_step\n",
        "            return\n",
        ("tests/sdk/test_appender.py",),
    ),
    Mutant(
        "a call passes one that waits for a device",
        "sdk/journal/appender.py",
        "        if awaited is not None or waiting:\n",
        "        if awaited is not None:\n",
        ("tests/sdk/test_deferred.py",),
    ),
    Mutant(
        "the fast path passes calls that wait for a device",
        "sdk/journal/appender.py",
        "            limit = 0  # first: from here on nobody passes it\n",
        "",
        ("tests/sdk/test_deferred.py",),
    ),
    Mutant(
        "a call that waits for a device gets its step later",
        "sdk/journal/waiting.py",
        "        self.after = waiting.after\n",
        "",
        ("tests/sdk/test_deferred.py",),
    ),
    Mutant(
        "a forked child places what its parent waits for",
        "sdk/journal/appender.py",
        "        line.forget()\n",
        "",
        ("tests/end_to_end/test_deferred.py",),
    ),
    Mutant(
        "what an interrupt left is placed twice",
        "sdk/journal/waiting.py",
        "                if self._mark() is not before:\n                    del calls[0]\n",
        "",
        ("tests/sdk/test_deferred.py",),
    ),
    Mutant(
        "what a broken device holds is taken for a value",
        "sdk/values/device.py",
        '            self.error = f"{type(error).__name__}: {error}"\n',
        "            pass\n",
        ("tests/sdk/test_deferred.py",),
    ),
    Mutant(
        "the checksums of a ring are not compared",
        "sdk/journal/salvage.py",
        "        if len(data) == chunk.end - chunk.start and zlib.crc32(data) == chunk.crc:\n",
        "        if len(data) == chunk.end - chunk.start:\n",
        ("tests/sdk/test_drain.py", _torture("ring-bit-flip")),
    ),
    Mutant(
        "draining drops the lock of the ring",
        "daemon/ingest/dead.py",
        "            drained = drain(path, descriptor)\n",
        "            drained = drain(path)\n",
        ("tests/daemon/test_ingest_dead.py",),
    ),
    Mutant(
        "the spool has no bound",
        "sdk/_spool.py",
        "        if bounded and self.bytes_written + size > self._bytes_max:\n            return REFUSED_SPOOL\n",
        "",
        ("tests/sdk/test_spool.py", "tests/sdk/test_sender.py"),
    ),
    Mutant(
        "a spool is called safe without being forced",
        "sdk/_spool.py",
        "            if sync:\n                self._force(segment)\n                self._all_forced = forced\n",
        "            if sync:\n                self._all_forced = forced\n",
        ("tests/sdk/test_spool.py",),
    ),
    Mutant(
        "the names of a spool are not forced",
        "sdk/_spool.py",
        "        sync_names(files, directory, RUN_LEVELS)\n",
        "",
        ("tests/sdk/test_spool.py",),
    ),
    # -- large values ---------------------------------------------------------------------------------------------------
    Mutant(
        "a slot of the arena is never given back",
        "sdk/journal/arena.py",
        "        self._arena.freed.append((self.place, self._size))\n",
        "        pass\n",
        ("tests/sdk/test_arena.py::test_what_is_let_go_is_used_again",),
    ),
    Mutant(
        "bytes are let go before they are stored",
        "sdk/journal/large.py",
        "        while self.pending and self.pending[0].sequence < next_sequence:\n",
        "        while self.pending:\n",
        ("tests/sdk/test_large.py::test_what_is_not_stored_is_kept",),
    ),
    Mutant(
        "a value is announced after its row",
        "sdk/journal/appender.py",
        """\
        if blobs is not None:
            place_blobs(blobs, announced, row, max(row, open_step))
        for payload in payloads[:-1]:
            place(KIND_ROW, flags & ~FLAG_COMMIT, payload, row, max(row, open_step), piece=True)
            note_boundary(mark[0])
        place(KIND_ROW, flags, payloads[-1], row, after, piece=not flags & FLAG_COMMIT or bool(flags & FLAG_LATE))
""",
        """\
        for payload in payloads[:-1]:
            place(KIND_ROW, flags & ~FLAG_COMMIT, payload, row, max(row, open_step), piece=True)
            note_boundary(mark[0])
        place(KIND_ROW, flags, payloads[-1], row, after, piece=not flags & FLAG_COMMIT or bool(flags & FLAG_LATE))
        if blobs is not None:
            place_blobs(blobs, announced, row, max(row, open_step))
""",
        ("tests/sdk/test_large.py::test_a_large_one_is_announced_before_its_row",),
    ),
    Mutant(
        "a value that was dropped leaves no GAP",
        "sdk/journal/large.py",
        " + [encode_map(gap) for gap in gaps]\n",
        "\n",
        ("tests/sdk/test_large.py::test_no_room_is_a_gap",),
    ),
    Mutant(
        "the largest value that a record may hold is stored apart",
        "sdk/journal/large.py",
        "        if blob.size <= INLINE_TENSOR_BYTES_MAX and ",
        "        if blob.size < INLINE_TENSOR_BYTES_MAX and ",
        ("tests/sdk/test_large.py::test_a_small_one_stands_in_the_record",),
    ),
    Mutant(
        "records are sent although a value before them is in private memory only",
        "sdk/_blobs.py",
        "                return min(mark, pending.before)\n",
        "                return mark\n",
        ("tests/sdk/test_own_blobs.py",),
    ),
    Mutant(
        "a row is acked before its large value is stored",
        "daemon/ingest/writing.py",
        "                if not stored:\n                    return\n",
        "",
        ("tests/daemon/test_ingest_blobs.py::test_a_large_one_takes_several_ticks",),
    ),
    Mutant(
        "rows are forced before the large values that they name",
        "daemon/ingest/forcing.py",
        "        self._submit_lane(writer, writer.media)\n        self._submit_lane(writer, writer.history)\n",
        "        self._submit_lane(writer, writer.history)\n        self._submit_lane(writer, writer.media)\n",
        ("tests/daemon/test_ingest_blobs.py::test_blobs_are_handed_to_the_syncer_before_rows",),
    ),
    Mutant(
        "the end of one copy completes the beginning of another",
        "sdk/segment/blobs.py",
        "        if chunks is None or block.step_min != CHUNK_BYTES * len(chunks):\n",
        "        if chunks is None:\n",
        ("tests/sdk/test_segment_blobs.py::test_a_chunk_of_another_copy_does_not_complete_one",),
    ),
    Mutant(
        "equal bytes count as equal values",
        "daemon/store/rewrite.py",
        "for name in sorted(meta, key=str) if name not in _NOT_OF_VALUE}",
        'for name in sorted(meta, key=str) if name == "digest"}',
        ("tests/daemon/test_encoding.py::test_equal_bytes_are_not_the_same_value",),
    ),
    Mutant(
        "a double lets go of its bytes on somebody's word",
        "daemon/encode/known.py",
        "        if noted is not None and self._holds(*noted, digest):\n",
        "        if noted is not None:\n",
        ("tests/daemon/test_encode_work.py",),
    ),
    Mutant(
        "a blob that others share becomes the same as a third one",
        "daemon/encode/work.py",
        '        if "digest" in meta:\n',
        '        if "digest" in meta and "encode_error" not in meta:\n',
        ("tests/daemon/test_encode_work.py",),
    ),
    Mutant(
        "a damaged copy is taken although a whole one is there",
        "daemon/store/rewrite.py",
        "        if first is None or first.meta is None:\n            continue\n",
        "        if first is None or first.meta is None:\n            return None\n",
        ("tests/daemon/test_rewrite.py",),
    ),
    Mutant(
        "the digest is that of the encoded bytes",
        "daemon/encode/work.py",
        '        found = {"digest": digest, "raw_size": len(data)}\n',
        "        digest = hashlib.sha256(encoded.data if encoded else data).digest()\n"
        '        found = {"digest": digest, "raw_size": len(data)}\n',
        ("tests/daemon/test_encoding.py::test_what_is_encoded_is_found_again",),
    ),
    Mutant(
        "a replaced segment is removed whatever the new one is worth",
        "daemon/store/replacing.py",
        "            if checked[segment.name] and not ",
        "            if not ",
        ("tests/daemon/test_replaced.py",),
    ),
    Mutant(
        "a rewritten segment gets its name before it was forced",
        "daemon/store/replacing.py",
        "        segment.sync()\n        segment.close()\n",
        "        segment.close()\n",
        ("tests/daemon/test_rewrite_crashes.py",),
    ),
    # -- columns: check and repair -----------------------------------------------------------------------------------------
    Mutant(
        "a window that lacks a block is taken for whole",
        "sdk/segment/windows.py",
        "    if expected is not None and expected != len(blocks):\n",
        "    if False:\n",
        ("tests/sdk/test_segment_windows.py::test_a_window_that_is_not_all_there",),
    ),
    Mutant(
        "one bad column costs all columns of its rows",
        "sdk/segment/windows.py",
        '                troubles.append(Trouble(block, f"{where}, {key!r}: {error}", low, high, (key,), values=len(group)))\n',
        "                raise\n",
        ("tests/sdk/test_segment_windows.py::test_one_bad_column",),
    ),
    Mutant(
        "a repaired segment goes on replacing what it may not hold",
        "sdk/segment/repair.py",
        '        values["replaces"] = [entry for entry in replaces if not self._is_read(entry)]\n',
        "",
        ("tests/sdk/test_segment_windows.py::test_what_was_replaced_and_is_still_there_is_replaced_no_more",),
    ),
    Mutant(
        "a damaged rewriting is repaired although all that it replaced is there",
        "daemon/store/repair.py",
        "            done = _spared(files, path, verified)\n",
        "            done = None\n",
        ("tests/daemon/test_repair_windows.py::test_what_was_replaced_serves_again",),
    ),
    # -- the disk -------------------------------------------------------------------------------------------------------
    Mutant(
        "the CRC of a block is not checked",
        "sdk/segment/reader.py",
        "    if crc == block.payload_crc and len(stored) == block.stored_size:\n",
        "    if len(stored) == block.stored_size:\n",
        ("tests/sdk/test_segment_reader.py",),
    ),
    Mutant(
        "the CRC of a block's header is not checked",
        "sdk/segment/headers.py",
        "    if zlib.crc32(packed[:-4], seed) != fields[-1]:\n        return None\n",
        "",
        ("tests/sdk/test_segment_reader.py", _torture("segment-bit-flip")),
    ),
    Mutant(
        "a cut behind a whole block is not seen",
        "sdk/segment/writer.py",
        "        self._file.patch(FILE_HEADER_SIZE, pack_seal(seal, self._seed))\n",
        "",
        ("tests/sdk/test_segment_writer.py", "tests/sdk/test_segment_reader.py"),
    ),
    Mutant(
        "a damaged seal is believed",
        "sdk/segment/headers.py",
        "    if magic != SEAL_MAGIC or zlib.crc32(packed[:-4], seed) != crc or size",
        "    if magic != SEAL_MAGIC or size",
        ("tests/sdk/test_segment_reader.py",),
    ),
    Mutant(
        "a removed block is not seen",
        "sdk/segment/reader.py",
        "        elif block.number > last.number + 1:\n",
        "        elif False:\n",
        ("tests/sdk/test_segment_reader.py",),
    ),
    Mutant(
        "a block that does not follow the one before it is not seen",
        "sdk/segment/reader.py",
        "        elif block.number == last.number + 1 and block.previous_crc != last.crc:\n",
        "        elif False:\n",
        ("tests/sdk/test_segment_reader.py",),
    ),
    Mutant(
        "a removed segment is not seen",
        "sdk/reader/gaps.py",
        "            if first is not None and expected is not None and first > expected:\n",
        "            if False:\n",
        ("tests/sdk/test_reader_gaps.py",),
    ),
    Mutant(
        "claims of later segments are ignored",
        "sdk/reader/gaps.py",
        "    for claim in (*claims, *sealed):\n",
        "    for claim in sealed:\n",
        ("tests/sdk/test_reader_gaps.py",),
    ),
    Mutant(
        "a torn tail is not cut",
        "sdk/segment/recovery.py",
        "            file.truncate(tail)\n",
        "            pass\n",
        ("tests/sdk/test_segment_recovery.py",),
    ),
    Mutant(
        "a torn tail is not kept aside",
        "sdk/segment/recovery.py",
        "            _keep_aside(files, path, tail, file.read(tail, min(torn, _ASIDE_BYTES_MAX)))\n",
        "",
        ("tests/sdk/test_segment_recovery.py",),
    ),
    Mutant(
        "a refused append leaves its part in the file",
        "sdk/files/__init__.py",
        "            with contextlib.suppress(OSError):\n                self.truncate(start)\n            self.size = start\n",
        "            self._is_torn = False\n            self.size = start\n",
        ("tests/sdk/test_files.py", "tests/sdk/test_files_failing.py", _torture("failing-operation")),
    ),
    Mutant(
        "a segment may be written over another's",
        "sdk/files/__init__.py",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW",
        "os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW",
        ("tests/sdk/test_files.py", "tests/sdk/test_segment_writer.py"),
    ),
    Mutant(
        "decompression has no bound",
        "sdk/compression.py",
        "    if raw_size > BLOCK_RAW_BYTES_MAX or raw_size > len(stored) * LZ4_RATIO_MAX + 64:\n",
        "    if False:\n",
        ("tests/sdk/test_compression.py",),
    ),
    Mutant(
        "merging goes by arrival, not by sequence",
        "sdk/rows.py",
        "    for piece in sorted(pieces, key=_SEQUENCE):\n        _, step, _, _, raw = piece\n",
        "    for piece in pieces:\n        _, step, _, _, raw = piece\n",
        ("tests/sdk/test_rows.py",),
    ),
    # -- names and places -----------------------------------------------------------------------------------------------
    Mutant(
        "run ids are used as they are",
        "sdk/ids.py",
        "    if 0 < len(encoded) <= _DIRECTORY_CHARACTERS_MAX and encoded not in _RESERVED:\n        return encoded\n",
        "    if run_id:\n        return run_id\n",
        ("tests/sdk/test_ids.py",),
    ),
    Mutant(
        "directories of sockets and rings may be open to others",
        "sdk/platform/linux.py",
        " or status.st_mode & 0o077:",
        ":",
        ("tests/sdk/test_platform.py",),
    ),
    Mutant(
        "a lock on a removed file counts",
        "sdk/platform/linux.py",
        "    if not _is_own(path):\n        lock.release()\n        return hold_lock(path, create=create)\n",
        "",
        ("tests/sdk/test_platform.py",),
    ),
    Mutant(
        "links are followed",
        "sdk/files/__init__.py",
        "(os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW |",
        "(os.O_RDWR if write else os.O_RDONLY) |",
        ("tests/sdk/test_files.py",),
    ),
    Mutant(
        "a pid decides whether a trainer crashed",
        "sdk/reader/state.py",
        "    return platform.is_locked(ring) or _is_being_drained(ring)\n",
        '    return platform.process_lives(stream.number("pid") or 0)\n',
        ("tests/sdk/test_reader_run.py", "tests/end_to_end/test_lives.py"),
    ),
    # -- log records -------------------------------------------------------------------------------------------------
    Mutant(
        "a log record is held, and with its traceback the model",
        "sdk/_handler.py",
        "weakref.ref(record)",
        "(lambda: record)",
        ("tests/sdk/test_handler.py::test_it_holds_no_record",),
    ),
    Mutant(
        "what a LogHandler will refuse is taken for stored",
        "sdk/_handler.py",
        "            and handler._passed(record) is not False\n",
        "",
        ("tests/sdk/test_handler.py::test_takes_knows_what_a_handler_stores",),
    ),
    Mutant(
        "lines that a spool may still bring are told as missing",
        "sdk/reader/logs.py",
        'if gap.stream in over or gap.reason != "missing":',
        "if True:",
        ("tests/sdk/test_reader_logs.py::test_a_line_that_is_stored_late_is_given_late",),
    ),
    # -- carrying runs -----------------------------------------------------------------------------------------------
    Mutant(
        "what a killed pass wrote stays in the file",
        "daemon/sync/appending.py",
        "            self._file.truncate(length)\n",
        "            pass\n",
        ("tests/sync/test_passage.py", _torture("sync-killed")),
    ),
    Mutant(
        "a row that two blocks hold is delivered twice",
        "sdk/reader/delivery.py",
        "        skip = _overlap(known, entry) if entry.first > reached else [*_overlap(known, entry), (entry.first, reached)]\n",
        "        skip = []\n",
        ("tests/sdk/test_reader_delivery.py",),
    ),
    Mutant(
        "rows that a resume hid are delivered",
        "sdk/reader/delivery.py",
        "        if part.step >= limit:\n",
        "        if False:\n",
        ("tests/sdk/test_reader_delivery.py",),
    ),
)
