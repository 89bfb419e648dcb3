from __future__ import annotations

from typing import Any

import pytest

import sdk
from sdk import _greeting
from tests.builders import RunBuilder, make_store
from tests.sdk.test_cards import checked


class Shown:
    """What stands for IPython's display: each call's HTML, and a handle that a front end would give."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def display(self, shown: Any, display_id: bool = False) -> Shown | None:
        self.pages.append(shown.data)
        return self if display_id else None

    def update(self, shown: Any) -> None:
        self.pages.append(shown.data)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """A notebook, as far as `display` can tell."""
    ipython = pytest.importorskip("IPython.display")
    made = Shown()
    monkeypatch.setattr(ipython, "display", made.display)
    monkeypatch.setattr("builtins.get_ipython", lambda: None, raising=False)
    return made


def test_a_card_shows_what_is_there(world: Any, shown: Shown) -> None:
    """A run of which nothing can be read yet has a card too; `display` shows it, folded where that is asked for."""
    run = sdk.init(name="n", config={"lr": 1})
    assert "n (" in checked(run.to_html()).text
    assert run.display(hidden=True) is True
    assert shown.pages[0].startswith('<div class="stepd"><details><summary>')
    run.finish()
    assert "finished" in checked(run.to_html()).text


def test_a_disabled_run_says_so(world: Any) -> None:
    """Nothing is recorded, and the card does not look as if."""
    assert "nothing is recorded" in checked(sdk.init(mode="disabled").to_html()).text


def test_outside_a_notebook(
    world: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """`display` shows nothing, and `live` prints once what is stored and where more is."""
    monkeypatch.setattr(_greeting, "_quiet", False)
    path = make_store(tmp_path)
    builder = RunBuilder(path)
    main = builder.stream()
    for value in (3.0, 2.0, 1.0):
        main.log({"train/loss": value, "other": value})
    builder.flush()
    run = sdk.init()
    assert run.display() is False
    from sdk.reader import Store

    run._read = lambda store, run_id: Store(path).run("a41f")
    live = run.live("train/*")
    assert "over" in repr(live)
    err = capsys.readouterr().err
    assert "stepd tail -f" in err
    assert "stepd: train/loss  3 " in err
    assert "other" not in err


def test_live_refuses_what_it_cannot_draw(world: Any) -> None:
    """At once, and saying what was found."""
    run = sdk.init()
    with pytest.raises(TypeError, match="key is int"):
        run.live(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds is 0"):
        run.live("x", seconds=0)


def test_live_lives_no_longer_than_its_run(world: Any, shown: Shown) -> None:
    """Its thread ends with the run, after one more look, and with `stop`; trouble of the reader ends neither thread nor run."""
    run = sdk.init()
    first, second = run.live("x", seconds=60), run.live("y", seconds=60)
    threads = [live._thread for live in (first, second)]
    first.stop()
    run.finish()
    for thread in threads:
        assert thread is not None
        thread.join(10)
        assert not thread.is_alive()
    assert any("ended" in page for page in shown.pages)
    assert run.live("z")._thread is None


def test_an_interrupted_cell_ends_its_chart(world: Any, shown: Shown) -> None:
    """The stop button stops drawing; an error in a cell does not."""

    class Result:
        error_in_exec: BaseException | None = ValueError()

    class Events:
        registered = True

        def unregister(self, name: str, function: Any) -> None:
            self.registered = False

    class Shell:
        events = Events()

    live = sdk.init().live(seconds=60)
    live._shell = Shell()
    live._after_cell(Result())
    assert Shell.events.registered
    Result.error_in_exec = KeyboardInterrupt()
    live._after_cell(Result())
    assert not Shell.events.registered
    assert live._thread is not None
    live._thread.join(10)
    assert not live._thread.is_alive()
