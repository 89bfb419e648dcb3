from __future__ import annotations

import ast
import dataclasses
import inspect
import pickle

import pytest

from sdk import settings as module
from sdk.settings import FIELDS, RING_BYTES_MIN, Settings, parse_bytes, resolve


def test_defaults_hold_without_an_environment() -> None:
    """Nothing given: the defaults, and nothing counts as given."""
    made = resolve({}, None, {})
    assert made == Settings()
    assert made.given == ()
    assert made.ring_bytes == 16 * 2**20


def test_arguments_beat_settings_beat_ours_beat_wandb() -> None:
    """The order of strength, one layer at a time."""
    environ = {"WANDB_PROJECT": "w"}
    assert resolve({}, None, environ).project == "w"
    environ["STEPD_PROJECT"] = "s"
    assert resolve({}, None, environ).project == "s"
    assert resolve({}, {"project": "o"}, environ).project == "o"
    assert resolve({"project": "a"}, Settings(project="o"), environ).project == "a"


def test_a_field_left_alone_in_settings_does_not_hide_the_environment() -> None:
    """Only what was given to `Settings` counts, None counts as not given."""
    assert resolve({"name": None}, Settings(name=None, notes="n"), {"STEPD_NAME": "e"}).name == "e"


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("WANDB_NAME", "n", "name", "n"),
        ("WANDB_NOTES", "n", "notes", "n"),
        ("WANDB_TAGS", "a, b,a", "tags", ("a", "b")),
        ("WANDB_RUN_ID", "r", "run_id", "r"),
        ("WANDB_RUN_GROUP", "g", "group", "g"),
        ("WANDB_JOB_TYPE", "j", "job_type", "j"),
        ("WANDB_RESUME", "allow", "resume", "allow"),
        ("WANDB_MODE", "dryrun", "mode", "dryrun"),
        ("WANDB_DISABLED", "true", "mode", "disabled"),
        ("WANDB_DISABLED", "false", "mode", "online"),
        ("WANDB_SILENT", "true", "silent", True),
        ("WANDB_DIR", "/d", "dir", "/d"),
        ("STEPD_RING_BYTES", "131072", "ring_bytes", 131072),
        ("STEPD_STORE_BYTES_MAX", "10G", "store_bytes_max", 10 * 2**30),
        ("STEPD_RUN_BYTES_MAX", "500MB", "run_bytes_max", 500 * 10**6),
        ("STEPD_FREE_BYTES_MIN", "1_000_000", "free_bytes_min", 10**6),
        ("STEPD_AUTOSTART", "0", "autostart", False),
        ("STEPD_FINISH_SECONDS_MAX", "1.5", "finish_seconds_max", 1.5),
        ("STEPD_MISUSE", "warn", "misuse", "warn"),
        ("STEPD_PROJECT", "", "project", None),
    ],
)
def test_variables(variable: str, text: str, field: str, value: object) -> None:
    """Each variable that counts, and what it becomes."""
    assert getattr(resolve({}, None, {variable: text}), field) == value


def test_our_mode_beats_wandb_disabled() -> None:
    """STEPD_MODE is set: WANDB_DISABLED does not count."""
    assert resolve({}, None, {"STEPD_MODE": "online", "WANDB_DISABLED": "1"}).mode == "online"


@pytest.mark.parametrize(
    ("field", "bad", "expected"),
    [
        ("mode", "onlin", "'online'"),
        ("misuse", "ignore", "'raise' or 'warn'"),
        ("ring_bytes", RING_BYTES_MIN - 1, str(RING_BYTES_MIN)),
        ("ring_bytes", 1.5, "whole number"),
        ("store_bytes_max", "10X", "10G"),
        ("run_bytes_max", -1, "10G"),
        ("free_bytes_min", True, "10G"),
        ("finish_seconds_max", -1, "seconds"),
        ("finish_seconds_max", "nan", "seconds"),
        ("autostart", "maybe", "true or false"),
        ("tags", ("",), "tags"),
        ("tags", "x" * 65, "tags"),
        ("resume", "maybe", "'allow'"),
        ("name", 3, "a text"),
    ],
)
def test_a_bad_value_is_named_with_field_variable_and_expectation(field: str, bad: object, expected: str) -> None:
    """The message says what was found, where, and what would do."""
    with pytest.raises(ValueError, match=f"'{field}'") as error:
        Settings(**{field: bad})
    assert f"STEPD_{field.upper()}" in str(error.value)
    assert repr(bad) in str(error.value)
    assert expected in str(error.value)


def test_a_bad_variable_names_the_variable_that_was_set() -> None:
    """W&B's variable is named when it was W&B's."""
    with pytest.raises(ValueError, match="variable WANDB_MODE"):
        resolve({}, None, {"WANDB_MODE": "x"})


def test_resume_takes_booleans() -> None:
    """True is "auto", False is no resume, also over the environment."""
    assert resolve({"resume": True}, None, {}).resume == "auto"
    assert resolve({"resume": False}, None, {"WANDB_RESUME": "must"}).resume is None


def test_unknown_fields_are_kept_by_name_and_wandbs_are_not() -> None:
    """`init` warns of the former; the latter are known to do no harm."""
    made = Settings(start_method="fork", _disable_stats=True, x_label="a", console="off", onfull="block")
    assert made.unknown == ("onfull",)
    assert resolve({}, made, {}).unknown == ("onfull",)


def test_wandbs_names_for_our_fields() -> None:
    """A field of another name for the same thing is taken as ours."""
    made = Settings(run_name="n", root_dir="/d", run_tags="t")
    assert (made.name, made.dir, made.tags) == ("n", "/d", ("t",))


def test_settings_must_be_settings() -> None:
    """A wrong type is named."""
    with pytest.raises(TypeError, match="int"):
        resolve({}, 3, {})  # type: ignore[arg-type]


def test_frozen_and_pickled() -> None:
    """It cannot change, and comes back the same in another process."""
    made = Settings(mode="offline", tags=("a",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.mode = "online"  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(made))
    assert copy == made
    assert copy.given == made.given


def test_replace_keeps_what_was_given() -> None:
    """A copy with a change still knows which fields were given."""
    made = Settings(mode="offline", onfull=1).replace(run_id="r")
    assert (made.mode, made.run_id, set(made.given), made.unknown) == ("offline", "r", {"mode", "run_id"}, ("onfull",))


def test_every_field_is_documented_with_its_variable() -> None:
    """Each field is followed by a text that names its variable and, but for mode, its default."""
    tree = ast.parse(inspect.getsource(module))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings").body
    for node, after in zip(body, body[1:]):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in FIELDS:
            assert isinstance(after, ast.Expr)
            assert isinstance(after.value, ast.Constant)
            assert f"STEPD_{node.target.id.upper()}" in str(after.value.value), node.target.id


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (5, 5), (5.0, 5), ("0", 0), ("7B", 7), ("1_000_000", 10**6), ("1e3", 1000), ("10G", 10 * 2**30), ("10 GiB", 10 * 2**30),
        ("10gb", 10**10), ("1.5 M", 3 * 2**19), ("2T", 2**41),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(text: object, size: int) -> None:
    """Units as in coreutils: K, M, G, T and KiB are powers of 1024, KB of 1000."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", [True, None, "", "G", "-1", "nan", "inf", "10X", "1IB", "1BK", "1.2.3", [1]])
def test_what_is_no_size(text: object) -> None:
    """The message quotes it and gives examples."""
    with pytest.raises(ValueError, match="10G, 500M"):
        parse_bytes(text)


def test_a_daemon_that_we_start_hears_of_the_budgets() -> None:
    """Those that were given to init and are not in its environment; a run's own travels with the run."""
    assert Settings(store_bytes_max="1M", run_bytes_max=5).for_daemon == {"STEPD_STORE_BYTES_MAX": str(2**20)}
    assert Settings().for_daemon == {}
