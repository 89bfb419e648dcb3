"""Parquet: a hive-partitioned dataset in a directory or a bucket, which any engine reads without us (docs/parquet.md).

    names, roots, objects      what files are called, and where they lie: a directory, a bucket
    cells, beside, facts       what a file says: rows and values as columns, media beside them, a row for the run
    parts, shipping            files as they are written; a run on its way: what is there, what is new, what goes
    views                      the SQL that lies in the root

`_sequence` orders everything that was logged; so a late row is one more file, and nothing that lies there is ever rewritten but to join
small files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from daemon.sync.target import Target
from sdk.errors import UsageError, install_hint

if TYPE_CHECKING:
    from daemon.sync.passage import Passage
    from daemon.sync.place import Place
    from daemon.sync.targets.parquet.roots import Root

_LAYOUTS = ("wide", "long")
_S3 = "s3://"
# A pass over a run that goes on makes a file for each of its streams, in a bucket for money.
_REST_SECONDS, _REST_SECONDS_S3 = 10.0, 30.0


class ParquetTarget(Target):
    """``parquet:DIR`` or ``parquet:s3://bucket/prefix``.

    Options: ``layout=wide|long``; ``media=yes|no``; of buckets ``endpoint=URL`` and ``region=NAME``.
    """

    scheme: ClassVar[str] = "parquet"
    options: ClassVar[frozenset[str]] = frozenset({"layout", "media", "endpoint", "region"})
    is_for_each_store: ClassVar[bool] = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._layout = _choice(place, "layout", _LAYOUTS)
        self._with_media = _choice(place, "media", ("yes", "no")) == "yes"
        if not place.path:
            raise UsageError(f"{place.text!r} names no directory", hint="--to parquet:DIR")
        for name in ("endpoint", "region"):
            if name in place.options and not place.path.startswith(_S3):
                raise UsageError(f"{place.text!r} is a directory, which has no {name}")
        self.rest_seconds = _REST_SECONDS_S3 if place.path.startswith(_S3) else _REST_SECONDS
        self._root = self._made_root()
        # Runs of which this process knows that nothing lies there beside what the state names.
        self._clean: set[str] = set()

    def _made_root(self) -> Root:
        options = self.place.options
        if self.place.path.startswith(_S3):
            from daemon.sync.targets.parquet.objects import Bucket

            return Bucket(self.place.path, options.get("endpoint", ""), options.get("region", ""))
        from daemon.sync.targets.parquet.roots import Directory

        return Directory(self.place.path)

    def check(self) -> None:
        _arrow()
        self._root.check()
        from daemon.sync.targets.parquet.views import VIEWS_NAME, views

        text = views(self._root.text, is_long=self._layout == "long").encode()
        if self._root.get(VIEWS_NAME) != text:
            self._root.put(VIEWS_NAME, text)

    def carry(self, passage: Passage) -> None:
        from daemon.sync.targets.parquet.shipping import Shipping

        run = passage.run.id
        is_clean = run in self._clean
        self._clean.discard(run)
        Shipping(_arrow(), self._root, passage, self._layout, with_media=self._with_media).go(look=not is_clean)
        self._clean.add(run)

    def close(self) -> None:
        self._root.close()


def _choice(place: Place, name: str, known: tuple[str, ...]) -> str:
    found = place.options.get(name, known[0])
    if found not in known:
        raise UsageError(f"{place.text!r}: {name} is {found!r}, expected {' or '.join(known)}")
    return found


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UsageError(
            "cannot write Parquet: pyarrow is not installed here",
            hint=install_hint("pyarrow"),
        ) from None
    return pyarrow
