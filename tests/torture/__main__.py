"""`scripts/torture.sh`: every torture, one line each; stopped at any moment, it goes on where it was.

What was done is kept in `.torture/`, one file for each torture and mode, and counts as long as neither the code nor the
tortures change.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

from tests.torture.harness import TORTURES, Broken, Missing, Tally, Torture, run

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".torture"
_NOTE_SECONDS = 1.0


def load() -> None:
    """Imports every module beside this one: importing registers its tortures."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in ("__main__", "harness") and not path.stem.startswith("test_"):
            importlib.import_module(f"tests.torture.{path.stem}")


def fingerprint() -> str:
    """Changes with every change of the code under test or of the tests."""
    digest = hashlib.sha256()
    for path in sorted(
        [*(ROOT / "sdk").rglob("*.py"), *(ROOT / "daemon").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Progress:
    """What was done of one torture, on disk."""

    def __init__(self, torture: Torture, mode: str, code: str) -> None:
        self._path = STATE / f"{torture.name}.{mode}.json"
        self._code = code
        self._noted = 0.0
        self.done = 0
        self.tally = Tally()
        try:
            state = json.loads(self._path.read_text())
            if state.pop("code") == code:
                self.done = state.pop("done")
                self.tally = Tally(**state, resumed_at=self.done)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing usable: from the beginning

    def note(self, done: int, *, now: bool = False) -> None:
        self.done = done
        if now or time.monotonic() - self._noted > _NOTE_SECONDS:
            self._noted = time.monotonic()
            STATE.mkdir(exist_ok=True)
            state = {"code": self._code, "done": done, **dataclasses.asdict(self.tally)}
            del state["resumed_at"]
            draft = self._path.with_suffix(".tmp")
            draft.write_text(json.dumps(state))
            os.replace(draft, self._path)


def line(word: str, torture: Torture, tally: Tally) -> str:
    """One line of the report."""
    refused = f", {tally.refused:,} more refused" if tally.refused else ""
    told = ", each of them reported" if tally.lost or tally.refused else ""
    records = f"{tally.accepted:,} records, {tally.lost:,} lost{refused}{told}" if tally.accepted else ""
    return f"{word:<5} {torture.name:<30} {tally.cases:>9,} cases {tally.seconds:>8.1f} s  {records}".rstrip()


def one(torture: Torture, mode: str, code: str) -> str:
    """Runs a torture to its end: "ok" where every promise held, "FAIL", or "skip" where this machine cannot run it."""
    cases = torture.cases(full=mode == "full")
    progress = Progress(torture, mode, code)
    if 0 < progress.done < len(cases):
        print(f"      {torture.name}: going on after {progress.done:,} of {len(cases):,} cases", flush=True)
    positions = {"next": progress.done}

    def note(_: int, __: Tally) -> None:
        positions["next"] += 1
        progress.note(positions["next"])

    try:
        run(torture, cases[progress.done :], progress.tally, note)
    except Broken as broken:
        progress.note(positions["next"], now=True)
        print(line("FAIL", torture, progress.tally), flush=True)
        traceback.print_exception(broken.__cause__)
        print(f"      {broken}", flush=True)
        return "FAIL"
    except Missing as missing:
        print(f"{line('skip', torture, progress.tally)}  {missing}", flush=True)
        return "skip"
    except KeyboardInterrupt:
        progress.note(positions["next"], now=True)
        raise
    progress.note(len(cases), now=True)
    print(line("ok", torture, progress.tally), flush=True)
    return "ok"


def main() -> int:
    parser = argparse.ArgumentParser("torture.sh", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all cases: hours")
    parser.add_argument("--only", metavar="TEXT", action="append", help="tortures whose name holds this")
    parser.add_argument("--case", type=int, help="one case of the torture that --only names")
    parser.add_argument("--again", action="store_true", help="forget what was done")
    parser.add_argument("--list", action="store_true", help="say what there is")
    options = parser.parse_args()
    load()
    chosen = [t for t in TORTURES.values() if not options.only or any(text in t.name for text in options.only)]
    exact = [t for t in chosen if t.name in (options.only or ())]
    chosen = exact if options.case is not None and exact else chosen
    if not chosen or (options.case is not None and len(chosen) != 1):
        parser.error(f"--only names {len(chosen)} tortures; there are {', '.join(TORTURES)}")
    if options.list:
        for torture in chosen:
            print(
                f"{torture.name:<30} {len(torture.cases(full=False)):>7,} / {len(torture.cases(full=True)):>9,}  {torture.says}"
            )
        return 0
    if options.case is not None:
        print(line("ok", chosen[0], run(chosen[0], [options.case], Tally())))
        return 0
    if options.again:
        for path in STATE.glob("*.json"):
            path.unlink()
    mode, code = ("full" if options.full else "default"), fingerprint()
    try:
        ends = [one(torture, mode, code) for torture in chosen]
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    total = sum(Progress(torture, mode, code).tally.cases for torture in chosen)
    skipped = f", {ends.count('skip')} skipped" if "skip" in ends else ""
    verdict = "BROKEN" if "FAIL" in ends else "nothing was lost unreported"
    print(f"{ends.count('ok')} of {len(ends)} tortures{skipped}, {total:,} cases: {verdict}")
    return int("FAIL" in ends)


if __name__ == "__main__":
    sys.exit(main())
