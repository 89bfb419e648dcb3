"""Values: what a user may log, and what each becomes in a record.

What may live here: turning foreign objects into plain msgpack values (`plain`), and the media types, which take one copy of
a user's bytes (`snapshot`) and describe themselves. A foreign package is recognised by its type's module, so nothing here
imports numpy, torch or jax that the user did not import.

| logged | stored, and read back as |
|---|---|
| None, bool, int (64-bit), float incl. NaN and infinities, str | itself |
| numpy, torch, jax, TensorFlow scalar or array of size 1 | bool, int, float or str |
| numpy, torch, jax, TensorFlow array of up to 16 KiB | numpy array of the same dtype and shape; bfloat16, float8 as float32 |
| list, tuple, namedtuple, range, deque, array.array | list |
| set, frozenset | list, sorted where its elements can be ordered |
| Mapping | map; nested keys that are not str become their text |
| bytes, bytearray, memoryview | bytes |
| datetime, date, time | ISO 8601 text |
| timedelta | float, seconds |
| Enum | its value, where that can be stored, else its name |
| dataclass | map of its fields |
| Decimal, Fraction | float, nearest |
| complex | map with "real" and "imag" |
| pathlib.Path | str |
| UUID, numpy datetime64 | str |
| function, class | its dotted name |
| the same on a CUDA or XPU device, or not computed yet (jax) | the same, once it has come (docs/journal.md#deferred-records) |
| larger array | tensor, stored apart, an item when read; beyond its key's budget its statistics (docs/media.md#tensors) |
| array of texts | list |
| PIL image, matplotlib figure, axes, pyplot | `Image` |
| plotly figure | `Plotly` |
| pandas DataFrame | `Table` |
| `Image`, `Video`, `Table`, …, also in lists, maps and cells of tables | media; bytes beyond 16 KiB stored apart (docs/media.md) |
| str, list, map, bytes too large for a record | itself; stored apart as media of `_type` "value" |
| a type given to `register_value` | what its function makes of it; asked before all of the above but plain types |

`KEY_BYTES_MAX` and `NESTING_MAX` hold for what is converted here. A dict of plain values is packed without a look at it,
so a longer key or a deeper list is accepted as well, as far as msgpack goes (1024 levels), and is stored and read back.
"""

from .blobs import Blob, snapshot, stage_in
from .convert import KNOWN_SCALARS, Admit, completed, plain, plain_value, register_known_scalars
from .media import Media

__all__ = [
    "KNOWN_SCALARS", "Admit", "Blob", "Media", "completed", "plain", "plain_value", "register_known_scalars", "snapshot",
    "stage_in",
]  # fmt: skip
