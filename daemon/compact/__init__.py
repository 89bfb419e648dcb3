"""Compaction: sealed rows of a run become columns, and many segments become few (docs/segment.md#rewritten-history).

What may live here: which segments are rewritten together (`plan`), rows into windows of columns (`window`), whether a window
says what its sources say (`compare`), and the work on a run, through `daemon.store.replacing` (`work`). The process that does
it finds its work on the disk, so it may be killed at any moment.
"""
