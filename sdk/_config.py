"""Config: the user's hyperparameters, as a mapping with attributes, every change of which is stored.

Contract: reads never wait. A change is made plain first (the table of `sdk.values`; an unknown object becomes its text, as
in W&B), then kept here and appended to the run as a META fact. Changing a value that is there needs permission. Any
thread may use it. Nested dicts and lists are given as they are, so that anything can be done with them; what is changed inside of
one is stored by the next change, `persist`, or the end of the run.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgpack

from . import _greeting
from .errors import ConfigError, Error, UsageError, install_hint
from .limits import NESTING_MAX
from .values import Media, plain_value

DEFAULTS_FILE = "config-defaults.yaml"
# Objects that hold nothing but values.
_NAMESPACES = frozenset({("argparse", "Namespace"), ("types", "SimpleNamespace")})
_OWN = ("_allow", "_data", "_emit", "_lock", "_told")


class Config(Mapping[str, Any]):
    """A run's hyperparameters: ``config.lr``, ``config["lr"]``, ``config.update(vars(args))``, ``dict(config)``.

    Keys lose "-" at both ends; those that begin with "_" are there but are not listed.

    Raises:
        ConfigError: A value would change and `allow_val_change` was not given.
    """

    __slots__ = _OWN

    _allow: bool
    _data: dict[str, Any]
    _emit: Callable[[dict[str, Any]], None]
    _lock: threading.RLock  # type: ignore[valid-type,unused-ignore]
    _told: dict[str, str]

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        emit: Callable[[dict[str, Any]], None] = lambda changed: None,
        allow_val_change: bool = False,
    ) -> None:
        """Args: `data` plain already; `emit` gets every change, and may raise to refuse it."""
        object.__setattr__(self, "_data", dict(data or {}))
        object.__setattr__(self, "_emit", emit)
        object.__setattr__(self, "_allow", allow_val_change)
        object.__setattr__(self, "_lock", threading.RLock())
        object.__setattr__(self, "_told", _texts(self._data))

    # -- reading -----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            keys = list(self._data)
        return iter([key for key in keys if not key.startswith("_")])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._data[name]
        except KeyError:
            near = _nearest(name, self._data)
            raise AttributeError(f"config has no {name!r}{near}") from None

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self]

    def __repr__(self) -> str:
        return f"{self.as_dict()}"

    def as_dict(self) -> dict[str, Any]:
        """A copy, hidden keys included."""
        with self._lock:
            return dict(self._data)

    # -- writing -----------------------------------------------------------------------------------------------------

    def __setitem__(self, key: str, value: Any) -> None:
        self._change({key: value}, None)

    def __setattr__(self, name: str, value: Any) -> None:
        self._change({name: value}, None)

    def update(self, d: Any = None, allow_val_change: bool | None = None, **values: Any) -> None:
        """Sets several values at once, or none of them.

        Args:
            d: A dict, argparse.Namespace, absl FLAGS, any object with `__dict__`, or the path of a YAML or JSON file.
            allow_val_change: Whether values that are there may change; None: as `init` was told.
        """
        self._change({**read_config(d), **values}, allow_val_change)

    def setdefaults(self, d: Any) -> None:
        """Sets those values whose keys are not there yet."""
        given = read_config(d)
        with self._lock:
            known = set(self._data)
        self._change({key: value for key, value in given.items() if _key(key) not in known}, None)

    def persist(self) -> None:
        """Stores what was changed inside of nested values; every other change was stored when it was made."""
        with self._lock:
            self._persist_locked()

    def _persist_locked(self) -> None:
        now = _texts(self._data)
        inside = [key for key, text in now.items() if self._told.get(key) != text]
        if inside:
            self._emit({key: config_value(self._data[key], key) for key in inside})
            self._told.update({key: now[key] for key in inside})

    def _change(self, values: Mapping[str, Any], allow: bool | None) -> None:
        plain = {_key(key): config_value(value, key) for key, value in values.items()}
        with self._lock:
            self._change_locked(plain, self._allow if allow is None else allow)

    def _change_locked(self, plain: dict[str, Any], allow: bool) -> None:
        changed = {k: v for k, v in plain.items() if k not in self._data or not _same(self._data[k], v)}
        for key in () if allow else changed:
            if key in self._data:
                raise ConfigError(
                    f"config {key!r} is {self._data[key]!r} and would become {changed[key]!r}",
                    hint=f"config.update({{{key!r}: …}}, allow_val_change=True), or init(allow_val_change=True)",
                )
        if changed:
            self._emit(changed)
            self._data.update(changed)
            self._told.update(_texts(changed))
            self._persist_locked()


class StaticConfig(Mapping[str, Any]):
    """A read-only copy of a config, as `run.config_static` gives it."""

    __slots__ = ("_data",)

    _data: dict[str, Any]

    def __init__(self, data: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_data", dict(data))

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._data:
            raise AttributeError(name)
        return self._data[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"config_static is read-only; set run.config.{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """What nested values say, so that a change inside of one is seen."""
    return {key: repr(value) for key, value in values.items() if isinstance(value, (dict, list))}


def _key(key: object) -> str:
    return str(key).strip("-")


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, [str(key) for key in known], n=3)
    return f"; nearest: {', '.join(map(repr, near))}" if near else ""


def _same(old: Any, new: Any) -> bool:
    """Equal, where NaN equals itself and True is not 1."""
    if type(old) is not type(new):
        return type(old) in (int, float) and type(new) in (int, float) and bool(old == new)
    return bool(old == new) or (old != old and new != new)


def config_value(value: Any, key: object = "", inside: tuple[int, ...] = ()) -> Any:
    """A hyperparameter as a plain value: arrays become lists, what cannot be stored becomes its text.

    Args:
        inside: The containers around it by identity, so that one which holds itself ends.

    Raises:
        TypeError: A media value.
    """
    if isinstance(value, Media):
        raise TypeError(f"config {key!r} is {type(value).__name__}: media are logged, not configured")
    if len(inside) > NESTING_MAX or id(value) in inside:
        return "…"
    deeper = (*inside, id(value))
    if isinstance(value, Mapping):
        return {str(k): config_value(v, key, deeper) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [config_value(v, key, deeper) for v in value]
    if (type(value).__module__, type(value).__name__) in _NAMESPACES:
        return {str(k): config_value(v, key, deeper) for k, v in vars(value).items()}
    try:
        plain = plain_value(value, key)
    except (TypeError, ValueError, OverflowError, RecursionError):
        plain = None if value is None else _text(value)
    if isinstance(plain, msgpack.ExtType):  # a tensor: people want to read it
        return config_value(value.tolist(), key, deeper)
    return plain


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def read_config(source: Any) -> dict[str, Any]:
    """What `init(config=)` and `config.update` take, as a dict.

    Raises:
        UsageError: A file that is not there or holds no mapping, or an object that has no values.
        Error: A YAML file, and no package to read it.
    """
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return dict(source)
    if isinstance(source, (str, os.PathLike)):
        return _read_file(os.fspath(source))
    flags = getattr(source, "flag_values_dict", None)  # absl.flags.FLAGS
    if callable(flags):
        return dict(flags())
    if hasattr(type(source), "__dataclass_fields__"):
        return {name: getattr(source, name) for name in type(source).__dataclass_fields__}
    if hasattr(source, "__dict__") and not isinstance(source, type):
        return dict(vars(source))
    try:
        return dict(source)
    except (TypeError, ValueError):
        raise UsageError(
            f"config is {type(source).__name__}, expected a dict, argparse.Namespace, FLAGS or the path of a file",
            hint="config=vars(args)",
        ) from None


def config_defaults(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Values below those that `init` is given, as in W&B: of the files that WANDB_CONFIG_PATHS names, a later one before an earlier
    one, or of "config-defaults.yaml" in the working directory.

    Raises:
        UsageError, Error: As `read_config`, of files that are named.
    """  # fmt: skip
    found: dict[str, Any] = {}
    for path in filter(None, environment.get("WANDB_CONFIG_PATHS", "").split(",")):
        found.update(_read_file(path.strip()))
    if found:
        return found
    try:
        return _read_file(DEFAULTS_FILE)
    except Error as error:
        if not isinstance(error.__context__, FileNotFoundError):
            _greeting.note_once(DEFAULTS_FILE, f"the config of {DEFAULTS_FILE} is left out: {error}")
        return {}


def _read_file(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the config file {path!r}: {error}", hint="config={…}, or an existing path"
        ) from None
    try:
        found = json.loads(text) if path.endswith(".json") else _yaml(text, path)
    except ValueError as error:
        raise UsageError(f"cannot read the config file {path!r}: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"the config file {path!r} holds {type(found).__name__}, expected a mapping")
    found.pop("wandb_version", None)
    return {str(key): _unwrapped(value) for key, value in found.items()}


def _yaml(text: str, path: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise Error(
            f"cannot read the config file {path!r}: package 'PyYAML' is not installed here",
            hint=f"{install_hint('pyyaml')}, or give a .json file",
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _unwrapped(value: Any) -> Any:
    """W&B's own files say ``lr: {desc: …, value: 0.1}``."""
    if isinstance(value, dict) and "value" in value and set(value) <= {"value", "desc"}:
        return value["value"]
    return value


def filtered(config: dict[str, Any], include: Any, exclude: Any) -> dict[str, Any]:
    """`config` by `config_include_keys` or `config_exclude_keys`.

    Raises:
        UsageError: Both are given.
    """
    if include and exclude:
        raise UsageError("init() got both config_include_keys and config_exclude_keys, expected one of them")
    names = include or exclude or ()
    listed = {name.strip() for name in (names.split(",") if isinstance(names, str) else names)}
    if include:
        return {key: value for key, value in config.items() if key in listed}
    return {key: value for key, value in config.items() if key not in listed}
