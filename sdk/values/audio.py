"""Sounds: `sdk.Audio`."""

from __future__ import annotations

from typing import Any, ClassVar

from . import sources
from .arrays import Fetched, fetch_array
from .blobs import Blob, snapshot
from .media import Media, known

_WHAT = "Audio()"
# Format to the most channels that it holds: libsndfile's own limit, FLAC's, Vorbis'.
_ENCODED = {"wav": 1024, "flac": 8, "ogg": 255}
# Formats of files by what their names end with; one of two names is the format's.
_ENDINGS = {
    "wav": "wav", "flac": "flac", "ogg": "ogg", "oga": "ogg", "opus": "opus", "mp3": "mp3", "m4a": "m4a", "mp4": "m4a",
    "aac": "aac", "aif": "aiff", "aiff": "aiff", "webm": "webm",
}  # fmt: skip
# Samples whose meaning is clear: integers fill their range, floats lie within -1 to 1.
_DTYPES = ("uint8", "int16", "int32", "float16", "bfloat16", "float32", "float64")


class Audio(Media):
    """A sound. Its samples are copied here, once, and encoded later, in another process (docs/media.md#sounds).

    Args:
        data_or_path: One of
            an array of numpy, torch, jax or TensorFlow, or a list: samples[N] or samples[N, channels]. uint8, int16 and
            int32 fill their range, floats lie within -1 to 1 (in wav they are kept as they are, beyond it too);
            the path of a sound file, its bytes, or the file open for reading: stored as they are.
        sample_rate: Samples in a second; must be given with samples.
        caption: A label.
        file_type: What samples become: wav or flac (lossless), or ogg.

    Raises:
        TypeError: Samples of another type.
        ValueError: Samples without `sample_rate`, of another shape, or none; too many channels for the format; a file
            that is of no known format; the address of something that is not on this machine.
        OSError: A file that cannot be read.
    """

    _type: ClassVar[str] = "audio-file"

    def __init__(
        self,
        data_or_path: Any,
        sample_rate: int | None = None,
        caption: str | None = None,
        file_type: str = "wav",
    ) -> None:
        self._caption = None if caption is None else str(caption)
        self._sample_rate = None if sample_rate is None else _rate(sample_rate)
        is_path = sources.is_path(data_or_path)
        data = sources.read_path(data_or_path, _WHAT) if is_path else sources.read_given(data_or_path)
        if data is not None:
            self._format = _format_of_file(data_or_path, data)
            self._blob = snapshot(data, {"media": self._type, "format": self._format})
            self._facts: dict[str, Any] = {}
            return
        if self._sample_rate is None:
            raise ValueError(f"{_WHAT} needs sample_rate when it is given samples")
        if file_type not in _ENCODED:
            raise ValueError(f"{_WHAT} file_type is {file_type!r}, expected one of {', '.join(_ENCODED)}")
        self._format = file_type
        self._blob, self._facts = _from_samples(_samples_of(data_or_path), file_type, self._sample_rate)

    @property
    def format(self) -> str:
        """The file's: "wav", "flac", "ogg", or what a given file is."""
        return self._format

    @classmethod
    def durations(cls, audio_list: Any) -> list[float | None]:
        """Seconds of each; None for a file."""
        return [one._facts.get("duration") for one in audio_list]

    @classmethod
    def sample_rates(cls, audio_list: Any) -> list[int | None]:
        """Of each, as it was given."""
        return [one._sample_rate for one in audio_list]

    def describe(self) -> dict[str, Any]:
        facts = known(caption=self._caption, sample_rate=self._sample_rate)
        return {**facts, **self._facts, "format": self._format, "data": self._blob}


def _rate(given: Any) -> int:
    rate = int(given)
    if rate != given or rate <= 0:
        raise ValueError(f"{_WHAT} sample_rate is {given!r}, expected a whole number above 0")
    return rate


def _format_of_file(given: Any, data: bytes) -> str:
    """By its first bytes; where they are not known, by its name."""
    if not data:
        raise ValueError(f"{_WHAT} is given an empty file")
    name = sources.name_of(given)
    known_by_name = _ENDINGS.get((name or "").rpartition(".")[2].lower())
    known_by_content = sources.format_of(data)
    # An Opus stream lies in ogg, and its name says more than its container.
    found = known_by_name if known_by_name == "opus" else _ENDINGS.get(known_by_content or "", known_by_name)
    if found is None:
        told = f"{name!r}" if name is not None else f"{len(data)} bytes that begin {data[:8]!r}"
        raise ValueError(
            f"{_WHAT} is given {told}, expected a sound file: {', '.join(dict.fromkeys(_ENDINGS.values()))}"
        )
    return found


def _samples_of(given: Any) -> Fetched:
    fetched = fetch_array(given, _WHAT)
    if fetched is not None:
        return fetched
    if not isinstance(given, (list, tuple)):
        raise ValueError(
            f"{_WHAT} is given {type(given).__module__}.{type(given).__qualname__}, expected an array or list of samples, "
            "or a file"
        )
    import numpy

    try:
        return Fetched(numpy.asarray(given), None, False)
    except ValueError as error:
        raise ValueError(f"{_WHAT} is given a list whose channels differ in length: {error}") from None


def _from_samples(fetched: Fetched, to: str, sample_rate: int) -> tuple[Blob, dict[str, Any]]:
    shape, dtype = fetched.array.shape, fetched.dtype or fetched.array.dtype.name
    if len(shape) not in (1, 2):
        raise ValueError(f"{_WHAT} is given samples of shape {shape}, expected (samples,) or (samples, channels)")
    if 0 in shape:
        raise ValueError(f"{_WHAT} is given no samples (shape {shape})")
    if dtype not in _DTYPES:
        raise TypeError(
            f"{_WHAT} is given samples of {dtype}, expected one of {', '.join(_DTYPES)}: samples.astype('int16') if they lie "
            "within its range"
        )
    channels = shape[1] if len(shape) == 2 else 1
    if channels > _ENCODED[to]:
        cure = ": samples.T, if its first axis are the channels" if shape[0] <= _ENCODED[to] else ""
        raise ValueError(
            f"{_WHAT} is given {channels} channels (shape {shape}), {to} holds at most {_ENCODED[to]}{cure}"
        )
    meta = {"media": Audio._type, "to": to, "sample_rate": sample_rate}
    blob = snapshot(fetched.array, meta, dtype=fetched.dtype)
    return blob, {"channels": channels, "duration": shape[0] / sample_rate}
