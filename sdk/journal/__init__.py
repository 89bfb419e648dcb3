"""The journal: the ring in shared memory that holds a stream's records until they are stored.

What may live here: the bytes of a ring (`format`), the ring as memory (`ring`), the function that training loops call
(`appender`) and what is done with a dead process's ring (`drain`). docs/journal.md is the specification.
"""
