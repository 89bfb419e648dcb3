"""Raw arrays in `log`: every type bit for bit, statistics that are right, and the budget of each key."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy
import pytest

from sdk.dtypes import FOREIGN_DTYPES
from sdk.limits import INLINE_TENSOR_BYTES_MAX
from sdk.record import BlobRef, MediaValue, decode_map, encode_blob_ref, encode_map
from sdk.testing import FakeClock, captured
from sdk.values import Blob, plain
from sdk.values.blobs import as_array
from sdk.values.budget import TensorBudget
from sdk.values.tensor import SAMPLE_MAX, tensor_statistics

COUNT = INLINE_TENSOR_BYTES_MAX + 2
RANDOM = numpy.random.default_rng(5)
OWN = [
    "|b1",
    "|i1",
    "|u1",
    "<i2",
    "<u2",
    "<i4",
    "<u4",
    "<i8",
    "<u8",
    "<f2",
    "<f4",
    "<f8",
    "<c8",
    "<c16",
    "<M8[ns]",
    "<m8[s]",
]


class Sink:
    """Blobs of what is made plain, each stored apart."""

    def __init__(self) -> None:
        self.blobs: list[Blob] = []

    def put(self, blob: Blob, key: str) -> object:
        self.blobs.append(blob)
        return encode_blob_ref(BlobRef(0, len(self.blobs) - 1, blob.size))

    def log(self, value: Any, **options: Any) -> Any:
        return decode_map(encode_map(plain({"k": value}, put=self.put, **options)[0]))["k"]

    def array(self, value: MediaValue) -> Any:
        blob = self.blobs[value["data"].number]
        return as_array(blob.view(), blob.meta["array"])


@pytest.mark.parametrize("dtype", OWN)
def test_every_type_of_numpy(dtype: str) -> None:
    """What comes back is what was logged, bit for bit; overwriting the array afterwards changes nothing."""
    given = RANDOM.integers(0, 256, (COUNT // 2, 2 * numpy.dtype(dtype).itemsize), numpy.uint8)
    given = (given & 1).view(bool) if dtype == "|b1" else given.view(dtype)
    bits = given.tobytes()
    sink = Sink()
    stored = sink.log(given)
    given[:] = 0
    assert (type(stored), stored["_type"], stored["dtype"], stored["shape"]) == (
        MediaValue,
        "tensor",
        dtype,
        [COUNT // 2, 2],
    )
    assert sink.array(stored).dtype == dtype
    assert sink.array(stored).tobytes() == bits
    assert sink.blobs[0].meta == {"media": "tensor", "to": "tensor", "array": [dtype, [COUNT // 2, 2], None]}


@pytest.mark.parametrize("name", FOREIGN_DTYPES)
def test_every_type_of_ml_dtypes(name: str) -> None:
    """Large ones come back as that type; small ones widened, exactly."""
    large = RANDOM.integers(0, 4, COUNT).astype(getattr(ml_dtypes, name))
    sink = Sink()
    stored = sink.log(large)
    assert stored["dtype"] == name
    assert sink.array(stored).dtype == large.dtype
    assert sink.array(stored).tobytes() == large.tobytes()
    small = large[:6].reshape(2, 3)
    assert numpy.array_equal(sink.log(small), small.astype("f4"), equal_nan=True)
    assert sink.log(large[:1]) == float(large[0])


def test_any_layout_of_memory() -> None:
    """Views, other orders of axes and of bytes, of which no contiguous copy is made first."""
    base = RANDOM.standard_normal((40, 30, 20))
    for view in (base.T, base[::-1, :, ::2], base.transpose(1, 0, 2), numpy.asfortranarray(base), base.astype(">f8")):
        sink = Sink()
        stored = sink.log(view)
        assert numpy.array_equal(sink.array(stored), view)
        assert stored["shape"] == list(view.shape)


def test_where_tensors_may_be() -> None:
    """In lists and maps; small ones stay in the record; a config takes none that is large."""
    sink = Sink()
    large = numpy.zeros(COUNT)
    stored = sink.log([{"a": large}, numpy.zeros(4)])
    assert stored[0]["a"]["_type"] == "tensor"
    assert stored[1].tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="stand here"):
        plain({"k": large})
    with captured() as rows:
        import sdk

        sdk.init()
        sdk.log({"w": large})
    assert rows[0]["w"]["data"].size == large.nbytes


def test_what_is_no_tensor() -> None:
    """Objects and named fields raise TypeError, naming key and type."""
    for bad in (numpy.array([object()] * COUNT), numpy.zeros(COUNT, "f8,f8")):
        with pytest.raises(TypeError, match=r"'k'.*expected numbers"):
            Sink().log(bad)


# -- statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["|b1", "|i1", "|u1", "<i8", "<f2", "<f4", "<f8"])
def test_statistics(dtype: str) -> None:
    """They are those of numpy in float64, over several chunks and an uneven rest."""
    array = (RANDOM.standard_normal((300_001,)) * 40).astype(dtype)
    found = tensor_statistics(array)
    wide = array.astype("f8")
    assert (found["count"], found["min"], found["max"]) == (array.size, wide.min(), wide.max())
    assert found["mean"] == pytest.approx(wide.mean(), rel=1e-9, abs=1e-12)
    assert found["std"] == pytest.approx(wide.std(), rel=1e-9)
    assert sum(found["histogram"]["values"]) == array.size
    assert "sampled" not in found


def test_statistics_of_odd_arrays() -> None:
    """NaN and infinities count apart; a large mean hides no deviation; magnitudes; times; nothing; texts; foreign types."""
    odd = tensor_statistics(numpy.array([math.nan, math.inf, 1.0, 3.0]))
    assert (odd["min"], odd["max"], odd["mean"], odd["std"]) == (1.0, 3.0, 2.0, 1.0)
    assert (odd["histogram"]["nan"], odd["histogram"]["inf"]) == (1, 1)
    assert tensor_statistics(numpy.array([1e9, 1e9 + 1, 1e9 + 2] * 70_000))["std"] == pytest.approx((2 / 3) ** 0.5)
    assert tensor_statistics(numpy.array([3 + 4j]))["max"] == 5
    assert tensor_statistics(numpy.array(["1970-01-02"], "M8[D]"))["max"] == 1
    assert tensor_statistics(numpy.zeros(0))["mean"] is None
    assert tensor_statistics(numpy.full(3, math.nan))["min"] is None
    assert tensor_statistics(numpy.array(["a"])) == {"count": 1}
    assert tensor_statistics(numpy.array([0x3FC0, 0xC000], "u2"), "bfloat16")["min"] == -2.0
    assert tensor_statistics(numpy.arange(12.0).reshape(3, 4).T)["mean"] == 5.5
    encode_map(tensor_statistics(numpy.array([1, 2], numpy.longdouble)))


def test_a_sample() -> None:
    """Of a large array a bounded part is looked at, spread over all of it, and it says how many."""
    array = numpy.linspace(-1, 1, 3_000_001, dtype="f4")
    found = tensor_statistics(array, sample_max=SAMPLE_MAX)
    assert found["count"] == array.size
    assert SAMPLE_MAX * 0.9 < found["sampled"] <= SAMPLE_MAX
    assert found["mean"] == pytest.approx(0, abs=0.01)
    assert found["std"] == pytest.approx(3**-0.5, rel=0.01)
    assert "sampled" not in tensor_statistics(array[:100], sample_max=100)


# -- the budget ----------------------------------------------------------------------------------------------------------


def test_a_key_has_a_budget() -> None:
    """A minute's worth at once, then what time gives back; each key its own; said once, counted."""
    clock = FakeClock()
    told: list[tuple[str, str]] = []
    budget = TensorBudget(600, lambda topic, text: told.append((topic, text)), lambda: clock.monotonic())
    assert [budget.admit("w", 200) for _ in range(5)] == [True, True, True, False, False]
    assert budget.admit("v", 200)
    assert len(told) == 1
    assert "'w'" in told[0][1]
    assert "tensor_bytes_per_minute_max" in told[0][1]
    clock.advance(1)
    assert [budget.admit("w", 200), budget.admit("w", 200)] == [True, False]
    clock.advance(3600)
    assert [budget.admit("w", 200) for _ in range(4)] == [True, True, True, False]
    assert budget.reduced == {"w": 4}
    assert "4 times" in budget.told()["w"]
    assert len(told) == 1


def test_a_single_value_may_be_larger_than_its_budget() -> None:
    """It is stored, and what follows waits until it is paid for."""
    clock = FakeClock()
    budget = TensorBudget(600, lambda topic, text: None, lambda: clock.monotonic())
    assert budget.admit("w", 6000)
    clock.advance(8 * 60)
    assert not budget.admit("w", 1)
    clock.advance(2 * 60)
    assert budget.admit("w", 1)


def test_beyond_the_budget_statistics_are_kept() -> None:
    """The value has no bytes, says so, and tells what it would have held."""
    sink = Sink()
    array = RANDOM.standard_normal(COUNT).astype("f4")
    stored = sink.log(array, admit=lambda key, size: (key, size) != ("k", array.nbytes))
    assert not sink.blobs
    assert (stored["_type"], stored["over_budget"], stored["dtype"], stored["shape"]) == (
        "tensor",
        True,
        "<f4",
        [COUNT],
    )
    assert stored["statistics"] == tensor_statistics(array)
    half = sink.log(array.astype(ml_dtypes.bfloat16), admit=lambda key, size: False)
    assert (half["dtype"], half["statistics"]["count"]) == ("bfloat16", COUNT)
