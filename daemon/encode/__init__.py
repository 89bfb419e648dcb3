"""Encoding: the worker process that makes files of raw values, long after the training loop went on.

What may live here: finding sealed media segments whose blobs are raw, and having `daemon.store.rewrite` write them again
with what `sdk.encoders` makes of each. The process finds its work on the disk, so it may be killed at any moment: whoever
comes next begins where the last segment was whole.
"""
