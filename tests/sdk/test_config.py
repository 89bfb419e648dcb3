from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

import numpy
import pytest

import sdk
from sdk._config import Config, StaticConfig, config_defaults, config_value, filtered, read_config
from sdk.errors import ConfigError, Error, UsageError


def _config(**options: Any) -> tuple[Config, list[dict[str, Any]]]:
    emitted: list[dict[str, Any]] = []
    return Config({"lr": 0.1, "_hidden": 1}, emit=emitted.append, **options), emitted


def test_reads_as_mapping_and_attribute() -> None:
    """Both ways, `in`, `get`, `dict()`; keys with an underscore are there but not listed."""
    config, _ = _config()
    assert config.lr == config["lr"] == config.get("lr") == 0.1
    assert "lr" in config
    assert "_hidden" in config
    assert dict(config) == {"lr": 0.1}
    assert list(config.keys()) == ["lr"]
    assert len(config) == 1
    assert config.as_dict() == {"lr": 0.1, "_hidden": 1}
    assert config.get("none", 3) == 3


def test_a_missing_attribute_is_an_attribute_error_that_names_the_nearest() -> None:
    """And a missing item a KeyError."""
    config, _ = _config()
    with pytest.raises(AttributeError, match="'lr'"):
        config.lrr  # noqa: B018
    with pytest.raises(KeyError):
        config["lrr"]


def test_each_change_is_stored_once() -> None:
    """A new key is emitted, an equal value is not."""
    config, emitted = _config()
    config.batch = 3
    config["name"] = "a"
    config.lr = 0.1
    assert emitted == [{"batch": 3}, {"name": "a"}]


def test_a_change_needs_permission() -> None:
    """Without it nothing of the update is kept or stored; with it everything is."""
    config, emitted = _config()
    with pytest.raises(ConfigError, match="allow_val_change=True"):
        config.update({"new": 1, "lr": 0.2})
    assert "new" not in config
    assert emitted == []
    config.update({"new": 1, "lr": 0.2}, allow_val_change=True)
    assert emitted == [{"new": 1, "lr": 0.2}]
    allowed, _ = _config(allow_val_change=True)
    allowed.lr = 0.3
    assert allowed.lr == 0.3


def test_equal_values_are_no_change() -> None:
    """1 and 1.0 are equal, NaN equals itself, True is not 1."""
    config = Config({"one": 1, "nan": math.nan, "flag": True})
    config.update({"one": 1.0, "nan": math.nan})
    with pytest.raises(ConfigError):
        config.flag = 1


def test_setdefaults_leaves_what_is_there() -> None:
    """Only missing keys are set."""
    config, emitted = _config()
    config.setdefaults({"lr": 5, "extra": 2})
    assert config.lr == 0.1
    assert emitted == [{"extra": 2}]


def test_keys_lose_dashes_at_both_ends() -> None:
    """As in W&B, for options of a command line."""
    config, emitted = _config()
    config.update({"--batch-size": 3})
    assert emitted == [{"batch-size": 3}]


def test_a_refused_change_is_not_kept() -> None:
    """What the run refuses (it is finished) does not show in the config."""

    def refuse(changed: object) -> None:
        raise UsageError("finished")

    config = Config({}, emit=refuse)
    with pytest.raises(UsageError):
        config.a = 1
    assert "a" not in config


@dataclasses.dataclass
class _Options:
    lr: float = 0.5


class _Opaque:
    def __str__(self) -> str:
        return "opaque"


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, 2), [1, 2]),
        ({3: _Options()}, {"3": {"lr": 0.5}}),
        (pathlib.Path("a"), "a"),
        (numpy.float32(0.5), 0.5),
        (numpy.arange(3), [0, 1, 2]),
        (numpy.zeros(100_000), None),
        (_Opaque(), "opaque"),
        ([_Opaque()], ["opaque"]),
        (_Broken(), "<_Broken>"),
        (2**70, str(2**70)),
        (None, None),
    ],
)
def test_values_become_plain(value: object, plain: object) -> None:
    """Arrays are lists, what cannot be stored is its text."""
    found = config_value(value)
    if plain is None and value is not None:
        assert isinstance(found, str)
    else:
        assert found == plain


def test_a_config_that_holds_itself_ends() -> None:
    """No endless recursion, also with several loops."""
    loop: dict[str, Any] = {}
    loop.update(a=loop, b=[loop, loop])
    assert config_value(loop) == {"a": "…", "b": ["…", "…"]}


def test_media_in_a_config_is_an_error() -> None:
    """As in W&B."""
    with pytest.raises(TypeError, match="Classes"):
        config_value(sdk.Classes([]), "classes")


class _Flags:
    def flag_values_dict(self) -> dict[str, Any]:
        return {"lr": 1}


class _Plain:
    def __init__(self) -> None:
        self.lr = 2


def test_what_a_config_may_be_given_as(tmp_path: pathlib.Path) -> None:
    """Mapping, Namespace, FLAGS, dataclass, object, pairs, JSON file; None is empty."""
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"lr": {"value": 3, "desc": None}, "wandb_version": 1, "opt": {"value": 1, "x": 2}}))
    assert read_config(None) == {}
    assert read_config(argparse.Namespace(lr=0)) == {"lr": 0}
    assert read_config(_Flags()) == {"lr": 1}
    assert read_config(_Plain()) == {"lr": 2}
    assert read_config(_Options()) == {"lr": 0.5}
    assert read_config([("lr", 4)]) == {"lr": 4}
    assert read_config(str(file)) == read_config(file) == {"lr": 3, "opt": {"value": 1, "x": 2}}


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_a_bad_config_file_is_an_error_of_use(tmp_path: pathlib.Path, text: str) -> None:
    """It names the file."""
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"c\.json"):
        read_config(file)
    with pytest.raises(UsageError, match="missing"):
        read_config(tmp_path / "missing.json")
    with pytest.raises(UsageError, match="int"):
        read_config(3)


def test_yaml_without_its_package_names_the_package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra is an error that says what to install."""
    file = tmp_path / "c.yaml"
    file.write_text("lr: 1\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(Error, match="pip install pyyaml"):
        read_config(file)


def test_filters() -> None:
    """Either a list of keys to keep or one of keys to leave out."""
    config = {"a": 1, "b": 2}
    assert filtered(config, None, None) == config
    assert filtered(config, ["a"], None) == {"a": 1}
    assert filtered(config, None, "a, c") == {"b": 2}
    with pytest.raises(UsageError, match="both"):
        filtered(config, ["a"], ["b"])


def test_static_config_is_read_only() -> None:
    """It reads like a config and refuses to change."""
    static = StaticConfig({"lr": 1})
    assert static.lr == static["lr"] == 1
    assert dict(static) == {"lr": 1}
    with pytest.raises(AttributeError, match="read-only"):
        static.lr = 2
    with pytest.raises(AttributeError):
        static.other  # noqa: B018


def test_what_is_changed_inside_of_a_nested_value_is_stored_later() -> None:
    """By the next change or by `persist`: a dict that was given is the config's own, as in W&B."""
    emitted: list[dict[str, Any]] = []
    config = Config({"model": {"depth": 1}, "sizes": [1, 2]}, emit=emitted.append)
    config["model"]["depth"] = 5
    config.sizes.append(3)
    assert emitted == []
    config.lr = 0.1
    assert emitted == [{"lr": 0.1}, {"model": {"depth": 5}, "sizes": [1, 2, 3]}]
    config.persist()
    config["model"]["layers"] = {"first": pathlib.Path("a")}
    config.persist()
    assert emitted[2:] == [{"model": {"depth": 5, "layers": {"first": "a"}}}]
    assert type(config["model"]) is dict


def test_nested_namespaces_and_dataclasses_are_nested_values() -> None:
    """Not their text."""
    config, _ = _config()
    config.update({"args": argparse.Namespace(lr=0.5, options=_Options()), "all": [argparse.Namespace(a=1)]})
    assert (config["args"], config["all"]) == ({"lr": 0.5, "options": {"lr": 0.5}}, [{"a": 1}])


def test_a_dotted_option_is_a_key() -> None:
    """As `--model.depth 3` comes out of argparse."""
    config, _ = _config()
    config.update(argparse.Namespace(**{"model.depth": 3}))
    assert config["model.depth"] == 3


def test_defaults_of_the_working_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's file, or those of its variable; a named one that is not there is an error, the other need not be."""
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    assert config_defaults({}) == {}
    (tmp_path / "config-defaults.yaml").write_text("lr: {desc: rate, value: 0.1}\nbatch: 3\n")
    assert config_defaults({}) == {"lr": 0.1, "batch": 3}
    (tmp_path / "a.json").write_text('{"lr": 1, "a": 2}')
    (tmp_path / "b.json").write_text('{"lr": 2}')
    assert config_defaults({"WANDB_CONFIG_PATHS": "a.json, b.json"}) == {"lr": 2, "a": 2}
    with pytest.raises(UsageError, match=r"none\.json"):
        config_defaults({"WANDB_CONFIG_PATHS": "none.json"})
    (tmp_path / "config-defaults.yaml").write_text("- 1\n")
    assert config_defaults({}) == {}
