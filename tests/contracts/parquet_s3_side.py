"""Parquet in a bucket of a real server, read through pyarrow's client."""

from __future__ import annotations

import os
from pathlib import Path

from pyarrow import fs

from tests import bucket
from tests.contracts import parquet_side


class Side(parquet_side.Side):
    is_huge = False  # as in a directory, and slower

    def start(self, directory: Path) -> str:
        self._before = {name: os.environ.get(name) for name in bucket.ENVIRONMENT}
        os.environ.update(bucket.ENVIRONMENT)
        endpoint = bucket.endpoint()
        self.system = fs.S3FileSystem(endpoint_override=endpoint, region="us-east-1")
        self.root = f"{bucket.make_bucket()}/below/this"
        return f"parquet:s3://{self.root}?endpoint={endpoint}"

    def _objects(self) -> list[str]:
        found = self.system.get_file_info(fs.FileSelector(self.root, recursive=True, allow_not_found=True))
        return sorted(info.path for info in found if info.type == fs.FileType.File)

    def names(self, kind: str) -> list[str]:
        return [
            name for name in self._objects() if name.startswith(f"{self.root}/{kind}/") and name.endswith(".parquet")
        ]

    def written(self, url: str) -> dict[str, str]:
        return {info.path: str((info.size, info.mtime_ns)) for info in self.system.get_file_info(self._objects())}

    def texts(self, url: str) -> list[bytes]:
        return [self.system.open_input_stream(name).readall() for name in self._objects()]

    def stop(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
