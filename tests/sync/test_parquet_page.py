"""docs/parquet.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from daemon.sync.place import parse
from daemon.sync.registry import make
from daemon.sync.targets.parquet import ParquetTarget, cells, facts, parts, shipping
from sdk.limits import MIB
from tests.sync.parquet_rig import Rig

PAGE = Path(__file__).parents[2] / "docs" / "parquet.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example reads a dataset with an attempt that took steps back, a late value, and keys that differ between files."""
    rig = Rig(tmp_path)
    rig.root = tmp_path / "dataset"
    rig.url = f"parquet:{rig.root}"
    run, main = rig.run()
    main.meta({"config": {"lr": 0.1}})
    for step in range(5):
        main.log({"train/loss": step + 1, "acc": 0.5})
    main.log({"train/loss": 0.25}, step=1)
    run.flush()
    rig.carry()
    again = run.stream(continues=main.hex, attempt=2, first_step=3)
    again.meta({"hide": {"from_step": 3}})
    again.log({"train/loss": 0.5, "text": "x"})
    run.seal()
    other, stream = rig.run("0012")
    stream.log({"loss": 1, "train/loss": 2.5})
    other.seal()
    rig.carry()
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert sorted(map(tuple, names["best"].values.tolist()))[1] == ("a41f", 0.1, 0.25)
    assert names["last"].select("_step", "train/loss", "acc", "text").rows() == [
        (0, 1.0, 0.5, None), (1, 0.25, 0.5, None), (2, 3.0, 0.5, None), (3, 0.5, None, "x"),
    ]  # fmt: skip
    assert set(names["frame"]["run"]) == {"a41f"}
    assert sorted(names["frame"]["_step"]) == [0, 1, 1, 2, 3]
    assert {"train/loss", "acc", "text", "loss"} <= set(names["frame"].columns)


def test_the_numbers_of_the_page() -> None:
    """Limits, options and columns are the same on the page and in the code."""
    text = PAGE.read_text(encoding="utf-8")
    assert f"When {shipping.JOIN_FILES} small files (below {shipping._SMALL_BYTES_MAX // MIB} MiB)" in text
    assert f"{parts.GROUP_ROWS_MAX // 1024} × 1024 rows, or {parts._GROUP_BYTES_MAX // MIB} MiB" in text
    assert f"one for each stream and {parts.PART_BYTES_MAX // MIB} MiB" in text
    assert f"More than {parts.COLUMNS_MAX} keys" in text
    assert f"at most {facts._COLUMNS_MAX} each" in text
    rests = [make(parse(url)).rest_seconds for url in ("parquet:x", "parquet:s3://x")]
    assert "leaves a run {:.0f} s between two passes, in a bucket {:.0f} s".format(*rests) in text
    for name in ParquetTarget.options:
        assert f"| `{name}=" in text
    for name in (cells.STEP, cells.TIME, cells.SEQUENCE, cells.STREAM, cells.NULL, cells.NAMELESS):
        assert f"`{name}`" in text
    for kind in shipping.KINDS:
        assert f"  {kind}/project=" in text
    for name in cells._TYPES:
        assert f"`{name}`" in text
