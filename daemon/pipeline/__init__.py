"""Decisions, without clock, disk or socket: every function takes what it needs and returns what to do.

What may live here: how pieces are coalesced, when what is written and why. Testable for a million steps in a second.
"""
