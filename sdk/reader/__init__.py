"""The reader: runs of a store as Python objects, with or without a daemon, finished or still growing.

What may live here: everything that looks at stored runs and changes nothing. It opens files through `sdk.files` only,
creates none, takes no lock and starts no thread; it treats every byte of a store as hostile and lists damage instead of
raising. What a row is comes from `sdk.rows`, what a block is from `sdk.segment`.

Floors inside, from below: `filenames`, `contents` (what stored bytes are), `blobs` (where they lie), `media` (the items
that users get); `entries` (what there is to read), `parts` (what rows come as), `scan` (segments, blocks, rows), `facts`
(META and GAP records), `lanes` (which streams continue one another, what a resume hid), `state`, `listing` (what lists
show, and its cache); `direct` and `columns` (values by key), `whole` and `join` (rows by step), `looks`, `series`,
`sample`, `points`, `tables`, `plain`, `frames`; `about`, `logs` and `console` (what was printed and logged), `run`,
`follow`, `names`, `many`, `store`. numpy is imported only by what returns arrays, so that listing runs stays cheap.
"""

from .about import StreamInfo
from .gaps import Gap
from .logs import LogLine
from .media import MediaItem
from .run import Run
from .store import Store, open_store

__all__ = ["Gap", "LogLine", "MediaItem", "Run", "Store", "StreamInfo", "open_store"]
