"""Places, cursors, passages and the file that is cut back: what every target is built on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.sync.appending import AppendFile
from daemon.sync.cursor import Cursor, cursor_path
from daemon.sync.passage import Passage
from daemon.sync.place import parse
from daemon.sync.target import Stopped
from sdk.errors import StoreError, UsageError
from sdk.reader import Run, open_store
from tests.builders import RunBuilder, make_store


class TestPlace:
    """Where runs go, as it is named."""

    def test_options_stand_behind_the_question_mark(self) -> None:
        """What stands behind it is by name, and the text of a place names the same place."""
        place = parse("parquet:s3://bucket/prefix?layout=long&region=eu")
        assert (place.scheme, place.path) == ("parquet", "s3://bucket/prefix")
        assert dict(place.options) == {"layout": "long", "region": "eu"}
        assert parse(place.text) == place

    def test_a_directory_may_hold_nearly_anything(self, tmp_path: Path) -> None:
        """A colon, a space or a question mark without a name behind it belongs to the directory."""
        place = parse("jsonl:a dir:what?/runs")
        assert place.path == "a dir:what?/runs"
        assert place.absolute(str(tmp_path)).path == f"{tmp_path}/a dir:what?/runs"
        assert parse("mlflow:http://host:5000").absolute("/x").path == "http://host:5000"

    @pytest.mark.parametrize(
        "url", ["mlflow:https://me:hunter2@host/x", "parquet:s3://key:hunter2@bucket/x", "new://hunter2@h"]
    )
    def test_credentials_are_refused_and_not_repeated(self, url: str) -> None:
        """A password in a URL would be stored with it: the error names what to set instead, and not the password."""
        with pytest.raises(UsageError) as caught:
            parse(url)
        assert "hunter2" not in str(caught.value)
        assert "environment" in str(caught.value) or "=…" in str(caught.value)

    @pytest.mark.parametrize("url", ["", "runs", "/tmp/runs", "Tensorboard:x", ":x"])
    def test_without_a_kind_it_is_no_target(self, url: str) -> None:
        """A word without a kind, or with an odd one, is refused with an example."""
        with pytest.raises(UsageError, match="expected KIND:WHERE"):
            parse(url)


def _cursor(directory: Path, run: str = "a41f") -> Cursor:
    cursor = Cursor(cursor_path(str(directory), run), run, "jsonl:x")
    cursor.read()
    return cursor


class TestPassage:
    """One run on its way."""

    def test_the_share_is_told_without_a_look_at_the_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """But for the first time: it is asked ten times a second, and streams may be thousands."""
        store = make_store(tmp_path)
        run = RunBuilder(store)
        streams = [run.stream(rank=rank) for rank in range(2)]
        for stream in streams:
            stream.log({"loss": 0.5})
        run.flush()
        passage = Passage(open_store(store).run(run.id), _cursor(tmp_path))
        shares = [passage.share]
        monkeypatch.setattr(Run, "streams", None)
        for _ in passage.batches():
            shares.append(passage.share)
        assert 0 == shares[0] < shares[1] < shares[2] <= 1

    def test_only_what_was_committed_is_delivered(self, tmp_path: Path) -> None:
        """Without a commit the same comes again; after it, nothing; then what is new."""
        store = make_store(tmp_path)
        run = RunBuilder(store)
        main = run.stream()
        main.log({"loss": 0.5})
        run.flush()
        reader = open_store(store).run(run.id)

        def pass_once(*, commit: bool) -> list[int]:
            passage = Passage(reader, _cursor(tmp_path))
            steps = [row[1] for batch in passage.batches() for row in batch.rows()]
            if commit:
                passage.commit({"length": 7})
            return steps

        assert pass_once(commit=False) == [0]
        assert pass_once(commit=True) == [0]
        assert pass_once(commit=True) == []
        assert _cursor(tmp_path).state == {"length": 7}
        main.log({"loss": 0.25})
        run.close()
        assert pass_once(commit=True) == [1]

    def test_losses_are_counted_once(self, tmp_path: Path) -> None:
        """What a target cannot hold is kept with the cursor: a pass that did not commit has counted nothing."""
        store = make_store(tmp_path)
        run = RunBuilder(store)
        run.stream().log({"loss": 0.5})
        run.close()
        reader = open_store(store).run(run.id)
        Passage(reader, _cursor(tmp_path)).lost("texts", "\ud800key", 3)
        assert _cursor(tmp_path).lost == {}
        passage = Passage(reader, _cursor(tmp_path))
        passage.lost("texts", "\ud800key", 3)
        passage.lost("texts", "\ud800key")
        passage.commit({})
        assert _cursor(tmp_path).lost == {"texts": {"\ud800key": 4}}

    def test_it_starts_again(self, tmp_path: Path) -> None:
        """A target that must write all anew gets all, and what was lost is counted anew."""
        store = make_store(tmp_path)
        run = RunBuilder(store)
        run.stream().log({"loss": 0.5})
        run.close()
        reader = open_store(store).run(run.id)
        passage = Passage(reader, _cursor(tmp_path))
        assert len(list(passage.batches())) == 1
        passage.lost("texts")
        passage.commit({"a": 1})
        passage = Passage(reader, _cursor(tmp_path))
        passage.start_again()
        assert (passage.state, len(list(passage.batches()))) == ({}, 1)
        passage.commit({})
        assert _cursor(tmp_path).lost == {}

    def test_values_of_epochs_come_when_the_run_is_over(self, tmp_path: Path) -> None:
        """What `define_metric(reduce=…)` made is given once, as a stream of its own, and again only when it has changed."""
        store = make_store(tmp_path)
        run = RunBuilder(store)
        main = run.stream()
        main.meta({"metric": {"loss": {"reduce": "mean", "over": "epoch"}}})
        for index in range(8):
            main.log({"loss": float(index), "epoch": index // 4})
        run.flush()
        reader = open_store(store).run(run.id)

        def made() -> list[tuple[str, list[int], list[float]]]:
            passage = Passage(reader, _cursor(tmp_path))
            batches = [batch for batch in passage.batches() if batch.stream.id == 0]
            passage.commit({})
            found = [(p.step.tolist(), p.columns) for batch in batches for p in batch.points]
            return [(key, steps, [*map(float, values)]) for steps, columns in found for key, values in columns.items()]

        assert made() == []
        main.finish()
        run.flush()
        assert made() == [("loss_epoch", [3, 7], [1.5, 5.5])]
        assert made() == []
        main.log({"loss": 100.0, "epoch": 1})
        run.flush()
        assert made() == [("loss_epoch", [3, 8], [1.5, 24.4])]

    def test_it_stops_between_batches(self, tmp_path: Path) -> None:
        """What says stop is asked before each batch."""
        store = make_store(tmp_path)
        run = RunBuilder(store)
        run.stream().log({"loss": 0.5})
        run.close()

        def stop() -> None:
            raise Stopped

        with pytest.raises(Stopped):
            list(Passage(open_store(store).run(run.id), _cursor(tmp_path), stopping=stop).batches())

    def test_rows_in_order_come_once(self, tmp_path: Path) -> None:
        """While a run lives the last steps wait; what came too late for the others is counted."""
        store = make_store(tmp_path)
        run = RunBuilder(store)
        main = run.stream()
        for _ in range(10):
            main.log({"loss": 0.5})
        run.flush()
        reader = open_store(store).run(run.id)
        passage = Passage(reader, _cursor(tmp_path))
        assert not passage.is_over  # of another host, and its files changed just now
        assert [row["_step"] for rows in passage.rows(hold_back=4) for row in rows] == list(range(6))
        passage.commit({})
        main.log({"late": 1.0}, step=3)
        run.close()
        passage = Passage(reader, _cursor(tmp_path))
        assert [row["_step"] for rows in passage.rows() for row in rows] == [6, 7, 8, 9]
        passage.commit({})
        assert _cursor(tmp_path).lost == {"late rows": {"": 1}}


class TestCursor:
    """The file that says how far a run was carried."""

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", '{"format":1}', '{"format":1,"run":"other"}', "null", "[" * 10_000]
    )
    def test_what_cannot_be_read_begins_anew(self, tmp_path: Path, content: str) -> None:
        """A cursor that is torn, of another run, or no cursor counts as none."""
        (tmp_path / "a41f.json").write_text(content, encoding="utf-8")
        assert _cursor(tmp_path).is_new

    def test_another_format_is_refused(self, tmp_path: Path) -> None:
        """A newer version's cursor is not taken for none: the target would be written twice."""
        cursor = _cursor(tmp_path)
        cursor.write()
        path = Path(cursor.path)
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "format": 2}), encoding="utf-8")
        with pytest.raises(StoreError, match="format 2"):
            _cursor(tmp_path)


class TestAppendFile:
    """A file that grows, and is cut back."""

    def test_what_was_not_committed_is_cut_off(self, tmp_path: Path) -> None:
        """What lies beyond the length of the last commit is gone when the file is opened."""
        path = str(tmp_path / "new" / "rows.jsonl")
        file = AppendFile(path)
        file.write([b"one\n"])
        length = file.force()
        file.write([b"two\n"])
        file.close()
        file = AppendFile(path, length)
        file.write([b"three\n"])
        file.close()
        assert Path(path).read_bytes() == b"one\nthree\n"

    def test_at_length_0_it_begins_anew(self, tmp_path: Path) -> None:
        """A file that nobody committed is replaced."""
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"left by a killed pass")
        AppendFile(str(path)).close()
        assert path.read_bytes() == b""

    def test_a_file_that_was_cut_by_others_is_no_ground(self, tmp_path: Path) -> None:
        """What is shorter than it was cannot be gone on with: the target begins anew instead."""
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"abc")
        with pytest.raises(ValueError, match="expected the 7"):
            AppendFile(str(path), 7)
