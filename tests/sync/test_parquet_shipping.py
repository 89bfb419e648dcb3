"""A run on its way into a dataset: files, joining, what goes and what stays, kills at every point."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.sync import outcome
from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.targets.parquet import parts, shipping
from daemon.sync.targets.parquet.names import parse_part
from daemon.sync.targets.parquet.roots import Directory
from daemon.sync.targets.parquet.shipping import small_neighbours
from sdk.errors import UsageError
from tests.builders import compact
from tests.sync.parquet_rig import Rig, read


class Killed(BaseException):
    """In the place of SIGKILL."""


def losses(rig: Rig) -> list[tuple[int, float]]:
    return [(row["_step"], row["loss"]) for row in rig.rows()]


class TestFiles:
    """What lies in the dataset."""

    def test_a_file_is_named_by_its_stream_and_its_sequences(self, tmp_path: Path) -> None:
        """Project and run are directories, which hive readers take for columns."""
        rig = Rig(tmp_path)
        run, main = rig.run(project="my digits")
        records = [main.log({"loss": float(step)}) for step in range(5)]
        run.seal()
        rig.carry()
        (path,) = rig.paths()
        assert path.relative_to(rig.root).parts[:3] == ("rows", "project=my%20digits", "run=a41f")
        assert path.name == f"{main.hex}-{records[0].sequence}-{records[-1].sequence}.parquet"

    def test_each_stream_has_its_own(self, tmp_path: Path) -> None:
        """Ranks, system metrics and the console lie apart."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"loss": 1.0})
        run.stream(rank=1).log({"loss": 2.0})
        run.stream("system").log({"cpu": 0.5})
        run.stream("console").log({"line": "hello"})
        run.seal()
        rig.carry()
        assert len(rig.paths("rows")) == 2
        assert [row["cpu"] for row in rig.rows("system")] == [0.5]
        assert [row["line"] for row in rig.rows("console")] == ["hello"]

    def test_the_long_layout_is_for_the_training(self, tmp_path: Path) -> None:
        """What accompanies it stays wide: its columns are known."""
        rig = Rig(tmp_path, "?layout=long")
        run, main = rig.run()
        main.log({"loss": 1.0})
        run.stream("system").log({"cpu": 0.5})
        run.seal()
        rig.carry()
        assert rig.rows("rows")[0]["key"] == "loss"
        assert rig.rows("system")[0]["cpu"] == 0.5

    def test_a_later_key_or_another_type_begins_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file has one schema, that of its first row group; integers go into a column of doubles where they are exact."""
        monkeypatch.setattr(parts, "GROUP_ROWS_MAX", 1)
        rig = Rig(tmp_path)
        run, main = rig.run()
        for values in ({"x": 0.5}, {"x": 1}, {"y": 1.0}, {"x": "text"}, {"x": 2**60}):
            main.log(values)
            run.flush()
            rig.carry()
        shutil.rmtree(rig.root)
        run.seal()
        monkeypatch.setattr("sdk.reader.delivery.BATCH_RECORDS", 1)
        rig.carry()
        assert [read(path).num_rows for path in rig.paths()] == [2, 1, 1, 1]
        assert [row.get("x") for row in rig.rows()] == [0.5, 1.0, None, "text", 2**60]

    def test_row_groups_hold_many_batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Batches wait until they fill a row group; the last one is what is left."""
        monkeypatch.setattr("sdk.reader.delivery.BATCH_RECORDS", 10)
        monkeypatch.setattr(parts, "GROUP_ROWS_MAX", 40)
        rig = Rig(tmp_path)
        run, main = rig.run()
        for step in range(100):
            main.log({"loss": step / 2})
            if step % 10 == 9:
                run.flush()
        run.seal()
        rig.carry()
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(rig.paths()[0]) as file:
            sizes = [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)]
        assert len(sizes) in (3, 4)
        assert sum(sizes) == 100
        assert losses(rig) == [(step, step / 2) for step in range(100)]

    @pytest.mark.parametrize("layout", ["wide", "long"])
    def test_a_key_for_every_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
        """Names that are made as the training goes take no memory of rows times keys, and are all there."""
        monkeypatch.setattr("daemon.sync.targets.parquet.cells._CELLS_MAX", 100)
        for where in (parts, shipping):
            monkeypatch.setattr(where, "COLUMNS_MAX", 20)
        rig = Rig(tmp_path, f"?layout={layout}")
        run, main = rig.run()
        for step in range(60):
            main.log({f"sample/{step}": step / 2, **({"all": 1.0} if step % 2 else {})})
        run.seal()
        rig.carry()
        assert max(read(path).num_columns for path in rig.paths()) <= 26
        rows = rig.rows()
        if layout == "wide":
            assert [row[f"sample/{row['_step']}"] for row in rows] == [step / 2 for step in range(60)]
            assert len(rig.paths()) > 2
        else:
            assert len(rows) == 90

    def test_a_large_run_is_committed_on_its_way(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Files are closed and committed when they are large enough, so that a kill costs one of them."""
        monkeypatch.setattr("sdk.reader.delivery.BATCH_RECORDS", 10)
        monkeypatch.setattr(parts, "GROUP_ROWS_MAX", 10)
        for where in (parts, shipping):
            monkeypatch.setattr(where, "PART_BYTES_MAX", 1)
        monkeypatch.setattr(shipping, "_SMALL_BYTES_MAX", 1)
        rig = Rig(tmp_path)
        run, main = rig.run()
        for step in range(40):
            main.log({"loss": step / 2})
            if step % 10 == 9:
                run.flush()
        main.finish()
        run.seal()
        commits = []
        commit = shipping.Shipping._commit
        monkeypatch.setattr(shipping.Shipping, "_commit", lambda self: (commits.append(1), commit(self))[1])
        rig.carry()
        assert len(rig.paths()) >= 3
        assert len(commits) >= 3
        assert losses(rig) == [(step, step / 2) for step in range(40)]

    def test_what_is_committed_on_the_way_is_safe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A commit speaks of everything that was read by then, so the file that is open is closed first."""
        monkeypatch.setattr(shipping, "PART_BYTES_MAX", 1)
        rig = Rig(tmp_path)
        run, main = rig.run()
        for stream in (main, run.stream(rank=1), run.stream(rank=2)):
            stream.log({"loss": 1.0})
            stream.finish()
        run.seal()
        commit = shipping.Shipping._commit

        def killed(self: Any) -> None:
            commit(self)
            raise Killed

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(shipping.Shipping, "_commit", killed)
            rig.carry()
        rig.carry()
        assert len(rig.rows()) == 3


class TestPasses:
    """A run that is carried while it is written."""

    def test_each_pass_makes_a_file_and_the_end_joins_them(self, tmp_path: Path) -> None:
        """What is new is one more file; when the run is over there is one, and a reader sees the same rows."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        for step in range(5):
            main.log({"loss": step / 2, **({"late": 1} if step > 2 else {})})
            run.flush()
            assert rig.carry().state == outcome.LIVE
        assert len(rig.paths()) == 5
        before = rig.rows()
        main.finish()
        run.seal()
        assert rig.carry().state in outcome.GOOD
        (name,) = rig.names()
        found = parse_part(name)
        assert found is not None
        assert (found.first, found.last) == (before[0]["_sequence"], before[-1]["_sequence"])
        assert rig.rows() == before

    def test_many_small_files_are_joined_before_the_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run of days leaves no thousand files."""
        monkeypatch.setattr(shipping, "JOIN_FILES", 4)
        rig = Rig(tmp_path)
        run, main = rig.run()
        for step in range(11):
            main.log({"loss": step / 2})
            run.flush()
            rig.carry()
            assert len(rig.paths()) < 4
        assert losses(rig) == [(step, step / 2) for step in range(11)]

    def test_files_of_different_types_stay_apart(self, tmp_path: Path) -> None:
        """Joining changes no value: where a column has no common type there is more than one file."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        for value in (1, 0.5, "text", "more"):
            main.log({"x": value})
            run.flush()
            rig.carry()
        main.finish()
        run.seal()
        rig.carry()
        assert len(rig.paths()) == 2
        assert [row["x"] for row in rig.rows()] == [1.0, 0.5, "text", "more"]

    def test_a_late_row_is_one_more_file(self, tmp_path: Path) -> None:
        """What comes for an older step after later ones were carried is delivered, with a higher sequence."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        for step in range(5):
            main.log({"loss": float(step)})
        run.flush()
        rig.carry()
        late = main.log({"loss": 9.5}, step=2)
        main.finish()
        run.seal()
        rig.carry()
        assert rig.rows()[-1]["_sequence"] == late.sequence
        assert rig.rows()[-1]["_step"] == 2

    def test_compaction_of_the_source_changes_nothing(self, tmp_path: Path) -> None:
        """Which segments hold the rows is nobody's business here."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        for step in range(20):
            main.log({"loss": float(step)})
        run.seal()
        rig.carry()
        before = {path: path.stat().st_mtime_ns for path in rig.paths()}
        compact(run)
        rig.carry()
        assert {path: path.stat().st_mtime_ns for path in rig.paths()} == before

    def test_a_process_looks_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a bucket each look is a request: only a process that has not carried the run before needs it."""
        looks = []
        listed = Directory.list
        monkeypatch.setattr(Directory, "list", lambda self, where: (looks.append(where), listed(self, where))[1])
        rig = Rig(tmp_path)
        run, main = rig.run()
        target = rig.target()
        for step in range(3):
            main.log({"loss": float(step)})
            run.flush()
            rig.carry(target)
        assert len(looks) == len(shipping.KINDS) + 1

    def test_values_of_epochs_are_a_stream_of_their_own(self, tmp_path: Path) -> None:
        """What `define_metric(reduce=…)` made lies beside what was logged, when the run is over, under a stream of no process."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.meta({"metric": {"loss": {"reduce": "mean", "over": "epoch"}}})
        for index in range(8):
            main.log({"loss": float(index), "epoch": index // 4})
        main.finish()
        run.seal()
        rig.carry()
        made = [row for row in rig.rows() if "loss_epoch" in row]
        assert [(row["_step"], row["loss_epoch"]) for row in made] == [(3, 1.5), (7, 5.5)]
        (stream,) = {row["_stream"] for row in made}
        assert stream not in (main.hex, "0" * 16)
        left = rig.paths()[0].with_name(f"{stream}-900-901.parquet")
        left.write_bytes(b"of a killed pass")
        main.log({"loss": 9.0, "epoch": 1})
        run.flush()
        rig.carry()
        assert not left.exists()
        assert [row["loss_epoch"] for row in rig.rows() if "loss_epoch" in row][-1] == 6.2


class TestLeftovers:
    """What a dataset holds that the state does not know, and the other way round."""

    def test_a_killed_pass_leaves_nothing(self, tmp_path: Path) -> None:
        """Files that nothing was committed of are removed; their rows come again."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"loss": 1.0})
        run.flush()
        rig.carry()
        left = rig.paths()[0].with_name(f"{main.hex}-900-901.parquet")
        left.write_bytes(b"no parquet")
        main.log({"loss": 2.0})
        run.flush()
        rig.carry()
        assert not left.exists()
        assert losses(rig) == [(0, 1.0), (1, 2.0)]

    def test_what_is_not_ours_stays(self, tmp_path: Path) -> None:
        """Files of other names, and those of streams that another store ships into the same run, are let alone."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"loss": 1.0})
        run.seal()
        rig.carry()
        others = [rig.paths()[0].with_name(name) for name in ("notes.txt", "00000000deadbeef-1-9.parquet", "_SUCCESS")]
        for path in others:
            path.write_bytes(b"another's")
        main.log({"loss": 2.0})
        run.flush()
        rig.carry()
        assert all(path.exists() for path in others)

    def test_a_file_that_is_gone_is_written_again(self, tmp_path: Path) -> None:
        """All of the run is, and a remark says so."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        for step in range(3):
            main.log({"loss": float(step)})
            run.flush()
            rig.carry()
        rig.paths()[1].unlink()
        main.log({"loss": 3.0})
        run.flush()
        found = rig.carry()
        assert losses(rig) == [(step, float(step)) for step in range(4)]
        assert found.told == ("files were missing from the dataset; all of the run was written anew",)

    def test_a_dataset_that_is_removed_while_it_grows(self, tmp_path: Path) -> None:
        """A process that has made the directories makes them again; the next one finds what is missing, and brings it."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        target = rig.target()
        main.log({"loss": 0.0})
        run.flush()
        rig.carry(target)
        for name in ("rows", "runs"):
            shutil.rmtree(rig.root / name)
        main.log({"loss": 1.0})
        run.flush()
        rig.carry(target)
        assert losses(rig) == [(1, 1.0)]
        main.log({"loss": 2.0})
        run.flush()
        rig.carry()
        assert losses(rig) == [(0, 0.0), (1, 1.0), (2, 2.0)]

    def test_another_layout_takes_the_place_of_the_first(self, tmp_path: Path) -> None:
        """In one directory a run lies in one layout, the one that was asked for last."""
        rig = Rig(tmp_path)
        run, main = rig.run()
        main.log({"loss": 1.0})
        run.flush()
        rig.carry()
        rig.url += "?layout=long"
        main.log({"loss": 2.0})
        run.flush()
        rig.carry()
        assert [(row["key"], row["value"]) for row in rig.rows()] == [("loss", 1.0), ("loss", 2.0)]

    def test_a_run_that_moves_to_another_project_moves_here(self, tmp_path: Path) -> None:
        """Its directories are named by the project, so nothing stays in the old ones."""
        rig = Rig(tmp_path)
        run, main = rig.run(project="one")
        main.log({"loss": 1.0})
        run.flush()
        rig.carry()
        main.meta({"run": {"project": "two"}})
        main.log({"loss": 2.0})
        run.flush()
        rig.carry()
        assert {path.parts[-3] for kind in ("rows", "runs") for path in rig.paths(kind)} == {"project=two"}
        assert losses(rig) == [(0, 1.0), (1, 2.0)]


def _killing(target: Any, count: int) -> Iterator[None]:
    """Kills the process in the place of, or right after, the n-th change of the dataset."""
    done = 0

    def dying(operation: Any, after: bool) -> Any:
        def called(*arguments: Any) -> Any:
            nonlocal done
            done += 1
            if done == count and not after:
                raise Killed
            result = operation(*arguments)
            if done == count:
                raise Killed
            return result

        return called

    root = target._root
    for place, name in enumerate(("publish", "put", "remove")):
        setattr(root, name, dying(getattr(root, name), after=(count + place) % 2 == 0))
    yield


def test_killed_at_every_change_it_is_as_undisturbed(tmp_path: Path) -> None:
    """Whatever was published, put or removed last: the next pass makes of it what an undisturbed one would have."""
    (tmp_path / "calm").mkdir()
    for kill in range(1, 9):
        where = tmp_path / f"kill{kill}"
        where.mkdir()
        rig = Rig(where)
        run, main = rig.run()
        for part in range(3):
            for step in range(4):
                main.log({"loss": part + step / 8})
            run.stream(rank=part + 1, kind="fork").log({"other": float(part)})
            run.flush()
            if part == 2:
                for stream in run.streams:
                    stream.finish()
                run.seal()
            target = rig.target()
            if part:
                for _ in _killing(target, kill if part == 2 else kill % 3 + 1):
                    try:
                        rig.carry(target)
                    except Killed:
                        rig.carry()
            else:
                rig.carry(target)
        rig.carry()
        assert [row["loss"] for row in rig.rows() if "loss" in row] == [
            part + step / 8 for part in range(3) for step in range(4)
        ]
        assert len(rig.names()) == 4, kill
        assert len(rig.names("runs")) == 1
        assert not list((rig.root / ".stepd-sync").glob("*.draft"))


class TestMisuse:
    """What can never work is said at once."""

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("parquet:", "names no directory"),
            ("parquet:gs://bucket/x", "no directory of this machine"),
            ("parquet:s3:///x", "names no bucket"),
            ("parquet:x?layout=tall", "expected wide or long"),
            ("parquet:x?media=maybe", "expected yes or no"),
            ("parquet:x?endpoint=http://h", "which has no endpoint"),
            ("parquet:x?codec=lz4", "no option 'codec'"),
        ],
    )
    def test_a_place_that_cannot_be(self, url: str, told: str) -> None:
        """The error names what was found and what was expected."""
        with pytest.raises(UsageError, match=told):
            make(parse(url))

    def test_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error names the package and how to get it."""
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        with pytest.raises(UsageError, match="pip install pyarrow"):
            Rig(tmp_path).target().check()

    def test_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        """Nothing was read by then."""
        (tmp_path / "set").write_bytes(b"a file")
        with pytest.raises(UsageError, match="cannot write a dataset"):
            Rig(tmp_path).target().check()


def test_small_files_that_follow_one_another_are_found() -> None:
    """A large file, or the end of a stream, ends a group."""
    a, b = "0" * 15 + "a", "0" * 15 + "b"
    files = {f"{a}-1-2.parquet": 9, f"{a}-11-12.parquet": 9, f"{a}-3-4.parquet": 1 << 30, f"{b}-1-9.parquet": 9}
    files |= {f"{a}-5-6.parquet": 9, "odd": 1}
    assert [[(part.stream[-1], part.first) for part in group] for group in small_neighbours(files)] == [
        [("a", 1)],
        [("a", 5), ("a", 11)],
        [("b", 1)],
    ]


def test_keys_that_differ_in_case_only_are_named(tmp_path: Path) -> None:
    """Also where they come in different passes; once, and not in the long layout, which keeps them apart."""
    rig = Rig(tmp_path)
    run, main = rig.run()
    main.log({"Loss": 1.0})
    run.flush()
    assert rig.carry().told == ()
    main.log({"loss": 2.0, "acc": 0.5})
    run.seal()
    (told,) = rig.carry().told
    assert told.startswith("'Loss' and 'loss' differ in case only")
    rig.url += "?layout=long"
    assert rig.carry().told == ()
