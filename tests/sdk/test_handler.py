"""sdk.LogHandler: log records become rows of the run's console, and the program notices nothing of it."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import logging.config
import logging.handlers
import queue
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk import _handler, _records
from sdk._handler import takes


@pytest.fixture
def rows(world: Any) -> Iterator[Any]:
    """What reached the console of all runs."""
    _handler._forked()
    yield lambda: [
        row for stream, options, _ in world.opened if options.get("kind") == "console" for row in stream.rows()
    ]
    for run in list(sdk._globals.state.unfinished.values()):
        run.finish()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of the test's own that reaches no other handler."""
    found = logging.getLogger("train.test")
    found.setLevel(1)
    # Why not `propagate`: pytest puts its handler on loggers that have it off.
    parent, found.parent = found.parent, None
    yield found
    found.handlers[:] = []
    found.parent, found.disabled = parent, False


def texts(rows: Any) -> list[str]:
    return [row["text"] for row in rows()]


def test_a_record_is_a_row(rows: Any, logger: logging.Logger) -> None:
    """Message, level, logger, place, extra fields, traceback and the open step; nothing that says nothing."""
    run = sdk.init()
    logger.addHandler(sdk.LogHandler())
    run.log({"loss": 1.0})
    logger.warning("lr is %g", 0.1, extra={"epoch": 3, "shape": (2, 3)})
    try:
        1 / 0  # noqa: B018 - the error is wanted
    except ZeroDivisionError:
        logger.exception("failed", stack_info=True)
    run.finish()
    first, second = rows()
    assert {key: first[key] for key in first if key[0] != "_" and key != "where"} == {
        "from": "log", "level": 30, "logger": "train.test", "text": "lr is 0.1", "at": 1, "extra.epoch": 3,
        "extra.shape": [2, 3],
    }  # fmt: skip
    assert first["where"].startswith("test_handler.py:")
    assert second["error"].splitlines()[0].startswith("Traceback") and second["error"].endswith("division by zero")
    assert "test_handler.py" in second["stack"] and second["text"] == "failed"


def test_levels_filters_and_formatters_count(rows: Any, logger: logging.Logger) -> None:
    """The text is what the formatter makes of it, but for the traceback, which is stored once; other handlers get theirs."""
    run = sdk.init()
    handler, printed = sdk.LogHandler("INFO"), io.StringIO()
    handler.setFormatter(logging.Formatter("%(name)s|%(message)s"))
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    logger.addHandler(handler)
    logger.addHandler(logging.StreamHandler(printed))
    logger.debug("too low")
    logger.info("secret")
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("oops")
    run.finish()
    (row,) = rows()
    assert row["text"] == "train.test|oops" and row["error"].endswith("ValueError: bad")
    assert printed.getvalue().startswith("too low\nsecret\noops\nTraceback") and "bad" in printed.getvalue()


def test_records_before_init_wait_for_it(rows: Any, logger: logging.Logger) -> None:
    """They are the run's first rows, with their own times; those between two runs are the next run's."""
    logger.addHandler(sdk.LogHandler())
    logger.info("early")
    run = sdk.init()
    logger.info("in")
    run.finish()
    logger.info("between")
    assert texts(rows) == ["early", "in"] and "created" in rows()[0] and "created" not in rows()[1]
    sdk.init().finish()
    assert texts(rows) == ["early", "in", "between"]


def test_a_record_that_found_no_run_a_moment_ago(rows: Any, logger: logging.Logger) -> None:
    """A thread that logs while `init` is at it leaves its record to the next one of a handler of the current run."""
    run = sdk.init()
    _handler._waiting.keep(1.0, {"from": "log", "text": "just before"})
    logger.addHandler(sdk.LogHandler(run=run))
    logger.info("for this run")
    logger.handlers[:] = [sdk.LogHandler()]
    logger.info("next")
    run.finish()
    assert texts(rows) == ["for this run", "just before", "next"]


def test_what_waits_is_bounded(rows: Any, logger: logging.Logger) -> None:
    """The last ones are kept, and a mark says how many are not; by number and by size."""
    logger.addHandler(sdk.LogHandler())
    for number in range(_handler.WAITING_ROWS_MAX + 7):
        logger.info("%d", number)
    sdk.init().finish()
    found = rows()
    assert found[0]["missed"] == 7 and found[0]["from"] == "log" and "init()" in found[0]["why"]
    assert [row["text"] for row in found[1:3]] == ["7", "8"] and len(found) == _handler.WAITING_ROWS_MAX + 1
    for _ in range(300):
        logger.info("x" * 8000)
    sdk.init().finish()
    assert 300 - _handler.WAITING_CHARACTERS_MAX // 8000 <= rows()[len(found)]["missed"] < 200


def test_a_handler_of_one_run(rows: Any, logger: logging.Logger, world: Any) -> None:
    """It stores in this run, and nothing after its end."""
    one = sdk.init()
    two = sdk.init(reinit="create_new")
    logger.addHandler(sdk.LogHandler(run=one))
    logger.info("for one")
    one.finish()
    logger.info("for nobody")
    two.finish()
    assert texts(rows) == ["for one"]
    assert repr(logger.handlers[0]) == f"<sdk.LogHandler (NOTSET) into run {one.id!r}>"
    with pytest.raises(TypeError, match=r"LogHandler\(\) run is str, expected what sdk.init\(\)"):
        sdk.LogHandler(run="a41f")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["disabled", "captured"])
def test_a_run_that_records_nothing(rows: Any, logger: logging.Logger, mode: str) -> None:
    """Neither a disabled run nor a test's fake has a console, and none of it waits for the next run."""
    logger.addHandler(sdk.LogHandler())
    with sdk.testing.captured() if mode == "captured" else contextlib.nullcontext():
        run = sdk.init(mode=mode if mode == "disabled" else None)
        logger.info("nowhere")
        run.finish()
    assert rows() == [] and (mode == "disabled" or not _handler._waiting.rows)


class Odd:
    """A value whose texts fail, or log."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.logger = logger

    def __repr__(self) -> str:
        if self.logger is None:
            raise RuntimeError("no text")
        self.logger.info("inside %s", self)
        return "odd"


def test_what_cannot_be_formatted_is_stored_all_the_same(rows: Any, logger: logging.Logger) -> None:
    """A message with too few arguments, texts that fail, a formatter that fails: no traceback on stderr, no lost record."""
    run = sdk.init()
    logger.addHandler(sdk.LogHandler())
    logger.info("%s and %s", "one")  # noqa: PLE1206 - what this is about
    logger.info("%s", Odd())
    logger.info(Odd())  # type: ignore[arg-type]
    logger.info("fine", extra={"odd": Odd(), "big": 1 << 70, "text": "x" * 5000, "nan": float("nan")})
    logger.handlers[0].setFormatter(logging.Formatter("%(nothing)s"))
    logger.info("last")
    run.finish()
    found = texts(rows)
    assert found[0] == "%s and %s % ('one') [cannot be formatted: TypeError]" and "[cannot be formatted" in found[1]
    assert found[2].startswith("<") and found[4].startswith("last % () [cannot be formatted: ")
    row = rows()[3]
    assert row["extra.odd"].endswith("Odd>") and row["extra.big"] == str(1 << 70) and len(row["extra.text"]) < 1100


def test_a_text_that_logs_does_not_recurse(rows: Any, logger: logging.Logger) -> None:
    """A value that logs itself in its text ends after a few records, each of them stored."""
    run = sdk.init()
    logger.addHandler(sdk.LogHandler())
    logger.info("outer %s", Odd(logger))
    logger.info("after")
    run.finish()
    assert texts(rows) == ["inside %s", "inside odd", "outer odd", "after"]


def test_arrays_on_a_device_are_not_looked_at(rows: Any, logger: logging.Logger) -> None:
    """The text of a tensor would make the training wait for its device; numpy's numbers are numbers."""
    numpy = pytest.importorskip("numpy")
    tensor = type("Tensor", (), {"__module__": "torch", "__repr__": lambda self: pytest.fail("looked at")})
    run = sdk.init()
    logger.addHandler(sdk.LogHandler())
    logger.info("x", extra={"tensor": tensor(), "mean": numpy.float32(0.5), "shape": [numpy.int64(3)]})
    run.finish()
    assert [rows()[0][f"extra.{key}"] for key in ("tensor", "mean", "shape")] == ["<torch.Tensor>", 0.5, [3]]


def test_long_records(rows: Any, logger: logging.Logger) -> None:
    """A long text comes in parts; a long traceback keeps its beginning and its end; too many fields are said."""
    run = sdk.init()
    logger.addHandler(sdk.LogHandler())
    text = "".join(map(str, range(40_000)))
    logger.info(text)
    logger.info("é" * 100_000)
    logger.info("x", extra={f"k{n}": n for n in range(100)})
    record = logger.makeRecord("train.test", 40, "f.py", 1, "y", (), None)
    record.exc_text = "begin" + "x" * 10**6 + "end"
    logger.handle(record)
    run.finish()
    found = rows()
    assert "".join(row["text"] for row in found if row.get("part", 0) >= 0 and row["text"] in text) == text
    assert [row.get("part") for row in found if row["text"] in text][:2] == [None, 1]
    assert sum(len(row["text"]) for row in found if row["text"][:1] == "é") == 100_000
    assert "more fields are left out" in found[-2]["extra.…"]
    assert found[-1]["error"].startswith("begin") and found[-1]["error"].endswith("end")
    assert max(len(str(row).encode()) for row in found) < 4 * 64 * 1024


def test_dict_config(rows: Any, tmp_path: Path) -> None:
    """The way most programs set up logging, before `init`: class by name, level, formatter, filters."""
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"short": {"format": "[%(levelname)s] %(message)s"}},
        "handlers": {"run": {"class": "sdk.LogHandler", "level": "INFO", "formatter": "short"}},
        "loggers": {"conf": {"handlers": ["run"], "level": "DEBUG", "propagate": False}},
    }
    logging.config.dictConfig(config)
    logging.getLogger("conf.sub").info("before")
    run = sdk.init()
    logging.getLogger("conf").debug("too low")
    logging.getLogger("conf").error("in")
    run.finish()
    assert texts(rows) == ["[INFO] before", "[ERROR] in"]
    logging.getLogger("conf").handlers[:] = []


def test_queues_and_memory_handlers(rows: Any, logger: logging.Logger) -> None:
    """Behind a queue it gets what the queue gives it: the formatted message, and the time of the record."""
    run = sdk.init()
    waiting: queue.Queue[Any] = queue.Queue()
    handler = sdk.LogHandler()
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    listener = logging.handlers.QueueListener(waiting, handler)
    for number in range(20):
        logger.info("n %d", number)
    listener.start()
    listener.stop()
    logger.handlers[0] = memory = logging.handlers.MemoryHandler(100, logging.ERROR, handler)
    logger.info("kept")
    memory.flush()
    run.finish()
    assert texts(rows) == [*(f"n {number}" for number in range(20)), "kept"]


def test_eight_threads(rows: Any, logger: logging.Logger) -> None:
    """Nothing is lost, and each thread's records are in its order, with its name."""
    run = sdk.init()
    logger.addHandler(sdk.LogHandler())

    def work(thread: int) -> None:
        for number in range(250):
            logger.info("%d %d", thread, number)

    threads = [threading.Thread(target=work, args=(n,), name=f"worker-{n}") for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.finish()
    for n in range(8):
        assert [row["text"] for row in rows() if row["thread"] == f"worker-{n}"] == [f"{n} {i}" for i in range(250)]


def test_it_holds_no_record(logger: logging.Logger, rows: Any) -> None:
    """A traceback holds the frames of the training and with them its tensors: it is free once the record was handled."""
    run = sdk.init()
    logger.addHandler(sdk.LogHandler())

    class Big(ValueError):
        pass

    error = Big("big")
    held = weakref.ref(error)
    logger.error("x", exc_info=error)
    del error
    gc.collect()
    assert held() is None and len(rows()) == 1
    run.finish()


def test_flush_and_shutdown(rows: Any, logger: logging.Logger) -> None:
    """Both may come at any time: without a run, with one, after it."""
    handler = sdk.LogHandler()
    logger.addHandler(handler)
    handler.flush()
    run = sdk.init()
    logger.info("x")
    handler.flush()
    logging.shutdown([weakref.ref(handler)])
    run.finish()
    handler.flush()
    assert texts(rows) == ["x"]


class Once(logging.Filter):
    """Lets a message pass the first time; so it must be asked once for each record."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.seen.append(record.getMessage())
        return self.seen.count(record.getMessage()) == 1


@pytest.mark.parametrize("order", ["before", "after"])
def test_takes_knows_what_a_handler_stores(rows: Any, logger: logging.Logger, order: str) -> None:
    """By path, propagation, level and filters, whichever of the two handlers comes first; a filter is asked once."""
    child = logging.getLogger("train.test.deep")
    answers: list[bool] = []
    asking = logging.StreamHandler(io.StringIO())
    asking.emit = lambda record: answers.append(takes(record))  # type: ignore[method-assign]
    ours = sdk.LogHandler("INFO")
    once = Once()
    ours.addFilter(once)
    for handler in (ours, asking) if order == "before" else (asking, ours):
        logger.addHandler(handler)
    child.info("no run")
    run = sdk.init()
    child.info("stored")
    child.info("stored")
    child.debug("too low")
    child.propagate = False
    child.addHandler(asking)
    child.info("goes nowhere else")
    child.propagate, child.handlers[:] = True, []
    run.finish()
    assert answers == [False, True, False, False, False] and once.seen == ["no run", "stored", "stored"]
    assert texts(rows) == ["no run", "stored"]


def test_takes_knows_what_was_stored_out_of_the_way(rows: Any, logger: logging.Logger) -> None:
    """Of two handlers behind a queue, which are not on the logger's way, the second one's line is known to be stored."""
    answers: list[bool] = []
    asking = logging.StreamHandler(io.StringIO())
    asking.emit = lambda record: answers.append(takes(record))  # type: ignore[method-assign]
    run = sdk.init()
    waiting: queue.Queue[Any] = queue.Queue()
    logger.addHandler(logging.handlers.QueueHandler(waiting))
    listener = logging.handlers.QueueListener(waiting, sdk.LogHandler(), asking)
    logger.info("x")
    listener.start()
    listener.stop()
    run.finish()
    assert answers == [True] and texts(rows) == ["x"]


def test_takes_without_any_handler(rows: Any, logger: logging.Logger) -> None:
    """A record whose logger nobody knows: no; a filter that fails is nobody's no, and raises nothing."""
    record = logging.LogRecord("nobody", 20, "f.py", 1, "x", None, None)
    assert takes(record) is False
    handler = sdk.LogHandler()

    def fails(record: logging.LogRecord) -> bool:
        raise RuntimeError("filter")

    handler.addFilter(fails)
    logger.addHandler(handler)
    assert takes(logging.LogRecord("train.test", 20, "f.py", 1, "x", None, None)) is False
    run = sdk.init()
    logger.info("stored")
    run.finish()
    assert texts(rows) == ["stored"]


def test_attach_root(rows: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`init(logging=True)` stores what the root logger gets until the end; warnings of a program without any handler are
    printed as before; a second handler is not added.
    """
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    run = sdk.init(logging=True)
    logging.getLogger("any").warning("seen")
    logging.getLogger("any").info("below the root's level")
    assert "seen" in capsys.readouterr().err
    assert [type(handler) for handler in root.handlers] == [sdk.LogHandler]
    run.finish()
    assert type(root.handlers) is list and root.handlers == []
    root.addHandler(sdk.LogHandler())
    run = sdk.init(logging="ERROR")
    logging.getLogger("any").warning("once")
    run.finish()
    assert texts(rows) == ["seen", "once"] and len(root.handlers) == 1
    with pytest.raises(ValueError, match="LOUD"):
        sdk.init(logging="LOUD")
    assert sdk.run is None


def test_basic_config_after_init(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`logging.basicConfig` behind `init(logging=True)` configures the root logger, as if nobody else had a handler there."""
    root, printed = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    run = sdk.init(logging=True)
    try:
        logging.basicConfig(level=logging.INFO, stream=printed, format="%(message)s")
        logging.getLogger("any").info("both")
    finally:
        run.finish()
        root.setLevel(level)
    assert (texts(rows), printed.getvalue()) == (["both"], "both\n")
    assert [type(handler) for handler in root.handlers] == [logging.StreamHandler]


def test_the_set_up_of_a_training_script(rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rotating file and the screen get what they got without us, byte for byte."""

    def set_up(name: str, directory: Path, *more: logging.Handler) -> logging.Logger:
        directory.mkdir()
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        file = logging.handlers.RotatingFileHandler(directory / "experiment.log", maxBytes=2000, backupCount=5)
        for handler in (file, logging.StreamHandler(sys.stdout)):
            handler.setFormatter(logging.Formatter("%(levelname)s - %(message)s"))
            logger.addHandler(handler)
        for handler in more:
            logger.addHandler(handler)
        return logger

    def train(logger: logging.Logger) -> str:
        logger.info("학습 시작...")
        for epoch in range(100):
            logger.info(f"Epoch {epoch}: loss = {1 / (epoch + 1):.4f}")  # noqa: G004 - as scripts do
        try:
            raise RuntimeError("CUDA out of memory")
        except RuntimeError as error:
            logger.error(f"학습 중 오류 발생: {error!s}")  # noqa: G004
            logger.exception("failed")
        for handler in logger.handlers:
            handler.close()
        logger.handlers[:] = []
        return capsys.readouterr().out

    alone = train(set_up("alone", tmp_path / "alone"))
    run = sdk.init()
    beside = train(set_up("beside", tmp_path / "beside", sdk.LogHandler()))
    run.finish()
    assert beside == alone.replace("alone", "beside")
    for one in sorted((tmp_path / "alone").iterdir()):
        assert (tmp_path / "beside" / one.name).read_bytes() == one.read_bytes()
    assert len(rows()) == 103 and rows()[0]["text"] == "학습 시작..." and "CUDA" in rows()[-1]["error"]


def test_limits_fit_into_the_smallest_ring() -> None:
    """A record with everything at its limit is less than the eighth of a forked child's ring."""
    big = "é" * 10**6
    record = logging.makeLogRecord({"msg": big, "name": big, "exc_text": big, "stack_info": big, "pathname": big})
    record.__dict__.update({f"{big[:100]}{n}": big for n in range(80)}, threadName=big, processName=big, filename=big)
    from sdk.record import encode_map

    found = _records.rows_of(record, None, record.created + 1)
    assert len(found) == _records.PARTS_MAX or len(found) == _records.PARTS_MAX + 1
    assert max(len(encode_map(row)) for row in found) < 256 * 1024 // 8 - 1024


def test_the_page_says_the_limits() -> None:
    """docs/logging.md has the numbers of the code."""
    page = " ".join((Path(__file__).parents[2] / "docs" / "logging.md").read_text(encoding="utf-8").split())
    assert f"The last {_handler.WAITING_ROWS_MAX} are kept" in page and _handler.WAITING_CHARACTERS_MAX == 1 << 20
    assert f"at most {_records.PARTS_MAX} of them" in page and _records.TEXT_BYTES_MIN == 8 * 1024
    assert f"at most {_records.EXTRA_CHARACTERS_MAX} characters, a list {_records.EXTRA_ITEMS_MAX} items, four" in page
    assert _records.EXTRA_LEVELS_MAX == 4 and _handler.FLUSH_SECONDS_MAX == 2
