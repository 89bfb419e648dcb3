"""The three clocks, by what they are good for. Order in the data never depends on any of them.

`wall_ns` stamps records (nanoseconds since the Unix epoch; it may jump). `monotonic` measures ages and deadlines
(seconds). `cpu` counts what this thread itself used (seconds).
"""

from __future__ import annotations

import time

wall_ns = time.time_ns
monotonic = time.monotonic
cpu = time.thread_time
pause = time.sleep
