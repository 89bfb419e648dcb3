"""sdk.values: the table in its docstring, line by line, and errors that name key and type."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import sys
import types
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk import values
from sdk.limits import INLINE_TENSOR_BYTES_MAX, KEY_BYTES_MAX, NESTING_MAX
from sdk.record import decode_map, encode_map
from sdk.values import convert, plain

UTC = datetime.timezone.utc


class Color(enum.Enum):
    RED = "red"
    ODD = object()


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    y: Any = 0.5


class SlottedPoint(Point):
    __slots__ = ()


Pair = collections.namedtuple("Pair", "first second")


class Reading(Mapping[Any, Any]):
    """A mapping that is no dict."""

    def __getitem__(self, key: Any) -> Any:
        return {"a": 1, 2: (3,)}[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(["a", 2])

    def __len__(self) -> int:
        return 2


def function() -> None: ...


def stored(value: Any) -> Any:
    """What a reader gets back for a value."""
    found, bad = plain({"k": value})
    assert not bad
    return decode_map(encode_map(found))["k"]


TABLE: list[tuple[Any, Any]] = [
    (None, None), (True, True), (False, False), (0, 0), (-(2**63), -(2**63)), (2**64 - 1, 2**64 - 1), (0.5, 0.5),
    (math.inf, math.inf), (-math.inf, -math.inf), ("text", "text"), ("", ""), ("\ud800", "\ud800"),
    ([1, (2.5, None)], [1, [2.5, None]]), ((), []), (range(3), [0, 1, 2]), (collections.deque([1, 2]), [1, 2]),
    (array.array("d", [0.5]), [0.5]), ({3, 1, 2}, [1, 2, 3]), (frozenset({"b", "a"}), ["a", "b"]),
    ({"a": {1: 2}}, {"a": {"1": 2}}), ({None: 1, (1, 2): 2}, {"None": 1, "(1, 2)": 2}), (Reading(), {"a": 1, "2": [3]}),
    (collections.OrderedDict(a=1), {"a": 1}), (types.MappingProxyType({"a": 1}), {"a": 1}),
    (b"\0\xff", b"\0\xff"), (bytearray(b"x"), b"x"), (memoryview(b"xyz")[::2], b"xz"),
    (datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), "2024-01-02T03:04:05+00:00"),
    (datetime.date(2024, 1, 2), "2024-01-02"), (datetime.time(3, 4), "03:04:00"),
    (datetime.timedelta(minutes=1, microseconds=500000), 60.5), (Color.RED, "red"), (Color.ODD, "ODD"), (Level.HIGH, 3),
    (Point(1), {"x": 1, "y": 0.5}), (SlottedPoint(1, (2,)), {"x": 1, "y": [2]}), (Pair(1, "b"), [1, "b"]),
    (decimal.Decimal("0.5"), 0.5), (fractions.Fraction(1, 4), 0.25), (1 + 2j, {"real": 1.0, "imag": 2.0}),
    (pathlib.PurePosixPath("/a/b"), "/a/b"), (pathlib.Path("c"), "c"), (uuid.UUID(int=1), str(uuid.UUID(int=1))),
    (function, f"{__name__}.function"), (dict, "builtins.dict"), (math.sin, "math.sin"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), TABLE, ids=lambda v: type(v).__name__)
def test_the_table(value: Any, expected: Any) -> None:
    """Each line of the table, with the exact type that is read back."""
    found = stored(value)
    assert found == expected
    assert type(found) is type(expected)


def test_sets_that_cannot_be_ordered_are_still_lists() -> None:
    """Mixed elements keep some order; nothing raises."""
    assert sorted(map(str, stored({1, "a", None}))) == ["1", "None", "a"]
    assert stored({frozenset({1})}) == [[1]]


class Text(str): ...


class Number(float): ...


class Count(int): ...


@pytest.mark.parametrize("value", [Text("a"), Number(0.5), Count(7), Level.HIGH])
def test_subclasses_of_plain_types_become_plain(value: Any) -> None:
    """The base's value in the base's type."""
    found = plain({"k": value})[0]["k"]
    assert type(found) in (str, float, int)
    assert found == value


DTYPES = [
    "?",
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    "f2",
    "f4",
    "f8",
    "g",
    "c8",
    "c16",
    "U3",
    "S3",
    "M8[s]",
    "m8[s]",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["scalar", "0-d", "(1,)", "(1, 1)"])
def test_numpy_scalars_and_arrays_of_size_one(dtype: str, form: str) -> None:
    """Every dtype, alone, as 0-d and as size-1 array, is a plain scalar of the same value."""
    source = numpy.array([1], dtype="i4").astype(dtype)
    value = {"scalar": source[0], "0-d": source.reshape(()), "(1,)": source, "(1, 1)": source.reshape(1, 1)}[form]
    expected: Any = {"c": {"real": 1.0, "imag": 0.0}, "U": "1", "S": b"1"}.get(dtype[0], 1)
    if dtype[0] in "mM":
        expected = str(source[0])
    found = stored(value)
    assert found == expected
    assert type(found) is {"?": bool, "i": int, "u": int, "f": float, "g": float}.get(dtype[0], type(expected))


@pytest.mark.parametrize("bits", [0x7FC00001, 0xFF800000, 0x80000000, 1])
def test_numpy_float32_is_widened_exactly(bits: int) -> None:
    """NaN, -Inf, -0.0 and subnormals as float64 of the same value."""
    value = numpy.array([bits], dtype="u4").view("f4")[0]
    assert str(stored(value)) == str(float(value))


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c16", "M8[ms]", ">f8", ">i2"])
@pytest.mark.parametrize("shape", [(2,), (0,), (3, 4), (2, 0), (1, 2, 3)])
def test_small_arrays_come_back_bit_for_bit(dtype: str, shape: tuple[int, ...]) -> None:
    """Same dtype (little-endian), shape and bits; from a transposed and strided array too."""
    source = numpy.arange(math.prod(shape), dtype="i8").reshape(shape).astype(dtype)
    for value in (source, source.T, source[::-1], numpy.repeat(source, 2, axis=0)[::2]):
        found = stored(value)
        if value.size == 1:
            continue
        assert found.dtype == value.dtype.newbyteorder("<")
        assert found.shape == value.shape
        assert (found == value).all()


def test_the_largest_array_that_is_stored_inline() -> None:
    """16 KiB is stored; one element more is an error that names key, shape and dtype."""
    count = INLINE_TENSOR_BYTES_MAX // 4
    assert stored(numpy.ones(count, "f4")).size == count
    with pytest.raises(
        ValueError, match=rf"'k' is an array of {4 * count + 4} bytes \(shape \({count + 1},\), dtype float32\)"
    ):
        plain({"k": numpy.ones(count + 1, "f4")})


def test_arrays_of_text_are_lists_and_of_objects_an_error() -> None:
    """What numpy cannot give as bytes without Python objects is not a tensor."""
    assert stored(numpy.array(["a", "bc"])) == ["a", "bc"]
    with pytest.raises(TypeError, match=r"'k' is an array of Python objects"):
        plain({"k": numpy.array([None, 1])})


def test_an_array_subclass_from_elsewhere_is_an_array() -> None:
    """Foreign values are recognised by any base of their type, not only by the type itself."""

    class Quantity(numpy.ndarray):  # type: ignore[misc, type-arg, unused-ignore]
        pass

    assert stored(numpy.array([1.5, 2.5]).view(Quantity)).tolist() == [1.5, 2.5]
    assert stored(numpy.array(2.5).view(Quantity)) == 2.5


# -- torch, jax, tensorflow: fakes with the same names, since none of them is needed to run the tests ---------------------


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the name torch with just what `sdk.values` touches, around numpy arrays."""
    module: Any = types.ModuleType("torch")

    class Device:
        def __init__(self, kind: str) -> None:
            self.type = kind

        def __str__(self) -> str:
            return f"{self.type}:0"

    class Dtype:
        def __init__(self, name: str) -> None:
            self.name = name

        def __str__(self) -> str:
            return f"torch.{self.name}"

    class Tensor:
        def __init__(self, data: Any, dtype: Any = None, device: str = "cpu") -> None:
            self.data, self.dtype, self.device = numpy.asarray(data), dtype, Device(device)

        def numel(self) -> int:
            return int(self.data.size)

        def item(self) -> Any:
            if self.device.type == "meta":
                raise RuntimeError("Tensor.item() cannot be called on meta tensors")
            data = self.data
            if self.dtype is module.bfloat16:
                data = (data.astype("<u4") << 16).view("<f4")
            return data.reshape(()).item()

        def detach(self) -> Any:
            return self

        cpu = contiguous = detach

        def view(self, dtype: Any) -> Any:
            assert (self.dtype, dtype) == (module.bfloat16, module.int16)
            return Tensor(self.data.view("<i2"), module.int16)

        def numpy(self) -> Any:
            assert self.dtype is not module.bfloat16, "as torch: Got unsupported ScalarType BFloat16"
            return self.data

    for cls, name in ((Device, "device"), (Dtype, "dtype"), (Tensor, "Tensor")):
        cls.__module__, cls.__qualname__ = "torch", name
        setattr(module, name, cls)
    module.bfloat16, module.int16 = Dtype("bfloat16"), Dtype("int16")
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_torch_tensors(torch: Any) -> None:
    """Size one is a scalar, more is a tensor, bfloat16 is widened exactly, device and dtype are text."""
    assert stored(torch.Tensor(2.5)) == 2.5
    assert stored(torch.Tensor([[True]])) is True
    assert stored(torch.Tensor(numpy.arange(6, dtype="f4").reshape(2, 3))).tolist() == [[0, 1, 2], [3, 4, 5]]
    half = torch.Tensor(numpy.array([0x3FC0, 0xC000], dtype="<u2"), torch.bfloat16)
    assert stored(half).tolist() == [1.5, -2.0]
    assert stored(torch.Tensor(numpy.array([0x3FC0], dtype="<u2"), torch.bfloat16)) == 1.5
    assert (stored(torch.device("cpu")), stored(torch.bfloat16)) == ("cpu:0", "torch.bfloat16")


def test_large_torch_tensors_are_stored_apart(torch: Any) -> None:
    """Bit for bit, bfloat16 under its name; one on a device is told."""
    kept: list[values.Blob] = []
    told: list[str] = []
    convert.on_device_value(told.append)
    try:
        bits = numpy.arange(INLINE_TENSOR_BYTES_MAX, dtype="<u2").reshape(2, -1)
        for tensor in (torch.Tensor(bits, torch.bfloat16, device="cuda"), torch.Tensor(bits.astype("f4"))):
            plain({"k": tensor}, put=lambda blob, key: kept.append(blob))
    finally:
        convert._on_device.clear()
    assert [blob.meta["array"][:2] for blob in kept] == [["bfloat16", [2, 8192]], ["<f4", [2, 8192]]]
    assert bytes(kept[0].view()) == bits.tobytes()
    assert bytes(kept[1].view()) == bits.astype("<f4").tobytes()
    assert len(told) == 1


def test_torch_subclasses_of_other_packages(torch: Any) -> None:
    """A tensor subclass defined elsewhere (MONAI, fastai, torchvision) is a tensor: a loss often is one."""

    class MetaTensor(torch.Tensor):  # type: ignore[misc]
        pass

    assert stored(MetaTensor(0.5)) == 0.5


def test_values_on_a_device_are_told(torch: Any) -> None:
    """Fetching from a device makes the loop wait, so somebody is told, with the key and the device."""
    told: list[str] = []
    convert.on_device_value(told.append)
    try:
        assert stored(torch.Tensor(1.0, device="cuda")) == 1.0
        assert stored(torch.Tensor(1.0)) == 1.0
    finally:
        convert._on_device.clear()
    assert len(told) == 1
    assert "'k'" in told[0] and "cuda:0" in told[0]


def test_errors_of_foreign_code(torch: Any) -> None:
    """A tensor that cannot be fetched raises its own error; with keep_going it is left out like any bad value."""
    meta = torch.Tensor(1.0, device="meta")
    with pytest.raises(RuntimeError, match="meta tensors"):
        plain({"k": meta})
    found, bad = plain({"k": meta, "good": 1}, keep_going=True)
    assert found == {"good": 1}
    assert "meta tensors" in bad["k"]


class FakeJaxArray:
    """What jax arrays look like from outside."""

    def __init__(self, data: Any, platform: str = "cpu") -> None:
        self.data = numpy.asarray(data)
        self.dtype, self.size = self.data.dtype, self.data.size
        self.device = types.SimpleNamespace(platform=platform)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.data

    def reshape(self, shape: Any) -> Any:
        return self.data.reshape(shape)


FakeJaxArray.__module__ = "jaxlib._jax"


def test_jax_arrays() -> None:
    """Recognised by module, scalar or tensor; on an accelerator somebody is told."""
    told: list[str] = []
    convert.on_device_value(told.append)
    try:
        assert stored(FakeJaxArray(0.25)) == 0.25
        assert stored(FakeJaxArray([1, 2])).tolist() == [1, 2]
        assert not told
        assert stored(FakeJaxArray(0.25, "gpu")) == 0.25
    finally:
        convert._on_device.clear()
    assert len(told) == 1


class FakeEagerTensor:
    def __init__(self, data: Any) -> None:
        self.data = data

    def numpy(self) -> Any:
        return self.data


FakeEagerTensor.__module__ = "tensorflow.python.framework.ops"


def test_tensorflow_tensors() -> None:
    """`numpy()` of an eager tensor: a scalar, an array, or bytes of a text tensor."""
    assert stored(FakeEagerTensor(numpy.float32(0.5))) == 0.5
    assert stored(FakeEagerTensor(numpy.arange(3))).tolist() == [0, 1, 2]
    assert stored(FakeEagerTensor(b"text")) == b"text"


# -- errors ----------------------------------------------------------------------------------------------------------------


class Opaque:
    pass


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [({"k": Opaque()}, TypeError, r"'k' is .*Opaque, which cannot be stored"), ({"k": {"a": [Opaque()]}}, TypeError, "'k' is"),
     ({"k": object()}, TypeError, "'k' is object,"), ({"k": (i for i in "")}, TypeError, "'k' is generator"),
     ({"k": 2**64}, ValueError, "'k' is an integer of 65 bits"), ({"k": -(2**63) - 1}, ValueError, "'k' is an integer of 64"),
     ({"k": [2**64]}, ValueError, "'k'"), ({1: 2}, TypeError, r"key 0 is int, expected str: 1 in \{1: int\}"),
     ({"a": 1, None: 2}, TypeError, "key 1 is NoneType"), ({b"a": 1}, TypeError, "key 0 is bytes"),
     ({"k" * (KEY_BYTES_MAX + 1): 1}, ValueError, f"key 0 is longer than {KEY_BYTES_MAX} bytes"),
     ({"é" * (KEY_BYTES_MAX // 2 + 1): 1}, ValueError, "key 0 is longer")],
)  # fmt: skip
def test_errors_name_key_and_type(data: dict[Any, Any], error: type[Exception], text: str) -> None:
    """And say that nothing was stored and how a long job goes on."""
    with pytest.raises(error, match=text) as caught:
        plain(data)
    assert "Nothing of this call was stored" in str(caught.value)
    assert "STEPD_MISUSE=warn" in str(caught.value)


def test_edges_that_are_no_errors() -> None:
    """The longest key and the deepest nesting are stored."""
    plain({"k" * KEY_BYTES_MAX: 1})
    nested: Any = 1
    for _ in range(NESTING_MAX):
        nested = [nested]
    assert stored(nested) == nested
    with pytest.raises(ValueError, match=f"'k' is nested deeper than {NESTING_MAX}"):
        plain({"k": [[nested]]})


def test_a_value_that_holds_itself_is_an_error() -> None:
    """No endless recursion: lists, dicts, and objects that wrap themselves."""
    loop: list[Any] = []
    loop.append(loop)
    point = Point(1)
    point.y = point
    for value in (loop, {"a": loop}, point):
        with pytest.raises(ValueError, match="nested deeper"):
            plain({"k": value})


class BadProperty:
    """A mapping whose reading raises an error with a constructor of its own, as pydantic's."""

    class Odd(ValueError):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"odd {one} {two}")


def test_errors_with_other_constructors_are_passed_on_as_their_base() -> None:
    """A ValueError subclass that cannot be made from one text becomes a ValueError with the text."""

    @dataclasses.dataclass
    class Trap:
        x: int = 0

        def __getattribute__(self, name: str) -> Any:
            if name == "x":
                raise BadProperty.Odd(1, 2)
            return super().__getattribute__(name)

    trap = object.__new__(Trap)
    with pytest.raises(ValueError, match="odd 1 2"):
        plain({"k": trap})


def test_keep_going_leaves_out_only_what_is_bad() -> None:
    """Everything else is stored, each bad key has its explanation."""
    found, bad = plain({"a": 1, "b": Opaque(), 3: 4, "c": 2**70, "d": [0.5], ("t",): 1}, keep_going=True)
    assert found == {"a": 1, "d": [0.5]}
    assert set(bad) == {"b", "3", "c", "('t',)"}
    assert all("log()" in text for text in bad.values())


@given(st.dictionaries(st.text(max_size=3), st.lists(st.dictionaries(st.integers(0, 3), st.integers(0, 9)))))
def test_the_callers_dict_is_never_changed(data: dict[str, Any]) -> None:
    """Same content, same objects, and the result shares nothing that could be changed later."""
    before, items = repr(data), {k: id(v) for k, v in data.items()}
    found, _ = plain(data)
    found["more"] = 1
    for value in found.values():
        if isinstance(value, list):
            value.append("changed")
    assert (repr(data), {k: id(v) for k, v in data.items()}) == (before, items)


def test_known_scalars_are_numpys_and_need_no_foreign_code() -> None:
    """Exactly numpy's own types, whose conversion is C."""
    values.register_known_scalars()
    assert values.KNOWN_SCALARS[numpy.float32] is float
    assert values.KNOWN_SCALARS[numpy.bool_] is bool
    assert all(issubclass(kind, numpy.generic) for kind in values.KNOWN_SCALARS)
