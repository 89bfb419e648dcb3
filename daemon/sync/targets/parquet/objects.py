"""A dataset in a bucket: S3, or what speaks like it, through pyarrow's own client.

Why pyarrow's: whoever writes Parquet has it already, and it looks for credentials where the other tools do: environment, profiles, single
sign-on, web identity, the instance. obstore sends small objects as fast, but knows no profiles without boto3 beside it. `s3fs` pins an
exact botocore, which then conflicts with the user's boto3.

A draft is a file without a name on this machine's disk, so that a killed process leaves nothing; it is sent when it is whole. Large
objects go in parts: what a killed process had sent of them is seen by nobody, and removed by the bucket's lifecycle rule
(docs/parquet.md#object-storage).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import IO, Any, TypeVar

from daemon.sync.target import Retriable
from daemon.sync.targets.parquet.roots import Draft
from sdk.errors import UsageError
from sdk.files import Buffer
from sdk.limits import MIB

_Result = TypeVar("_Result")

_SEND_BYTES = 8 * MIB
_CONNECT_SECONDS, _REQUEST_SECONDS = 10.0, 60.0
# The client waits and tries by itself first; what it gives up is tried again by the driver, with longer waits.
_TRIES = 4
# Pictures are small, and each takes the time of a request. Limit: so many are held in memory.
_SENDERS, _WAITING_MAX = 8, 16
_AWS = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?", re.ASCII)
_LATER = frozenset(
    "NETWORK_CONNECTION SLOW_DOWN SERVICE_UNAVAILABLE INTERNAL_FAILURE REQUEST_TIMEOUT THROTTLING".split()
)
_CREDENTIALS = frozenset(
    "ACCESS_DENIED INVALID_ACCESS_KEY_ID SIGNATURE_DOES_NOT_MATCH INVALID_CLIENT_TOKEN_ID INVALID_SIGNATURE "
    "MISSING_AUTHENTICATION_TOKEN UNRECOGNIZED_CLIENT".split()
)
# These have no name of their own in the client, and stand in its message.
_CREDENTIALS_TOLD = re.compile(r"ExpiredToken|InvalidToken|AuthorizationHeaderMalformed|TokenRefreshRequired")
_CREDENTIALS_HINT = "AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… stepd sync …   (or AWS_PROFILE=…)"


class ObjectDraft:
    """A draft of `Bucket`: a file that has no name."""

    def __init__(self) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when it was sent
        self.closed = False

    def write(self, data: Buffer) -> int:
        return self.file.write(data)

    def flush(self) -> None: ...

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None: ...


class Bucket:
    """A dataset below a prefix of a bucket.

    Args:
        path: ``s3://bucket/prefix``.
        endpoint: URL of a service that is not Amazon's; "": AWS_ENDPOINT_URL, else Amazon's.
        region: "": AWS_REGION, else where the bucket says it is.
    """

    def __init__(self, path: str, endpoint: str = "", region: str = "") -> None:
        bucket, _, prefix = path.removeprefix("s3://").partition("/")
        if not bucket:
            raise UsageError(f"{path!r} names no bucket", hint="--to parquet:s3://bucket/prefix")
        self.text = path
        self._bucket = bucket
        self._base = "/".join([bucket, *filter(None, prefix.split("/"))])
        self._endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3", "") or os.environ.get("AWS_ENDPOINT_URL", "")
        self._region = region or os.environ.get("AWS_REGION", "") or os.environ.get("AWS_DEFAULT_REGION", "")
        self._opened: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._sending: deque[Future[None]] = deque()

    @property
    def _system(self) -> Any:
        if self._opened is None:
            from pyarrow import fs

            region: str | None = self._region or ("us-east-1" if self._endpoint else self._found_region(fs))
            self._opened = fs.S3FileSystem(
                endpoint_override=self._endpoint or None,
                region=region,
                connect_timeout=_CONNECT_SECONDS,
                request_timeout=_REQUEST_SECONDS,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
                allow_delayed_open=True,  # one request for a small object instead of three
            )
        return self._opened

    def _found_region(self, fs: Any) -> str | None:
        try:
            found: str = fs.resolve_s3_region(self._bucket)
        except OSError:
            return None  # the profile may say it
        return found

    def check(self) -> None:
        from pyarrow import fs

        found = self._ask(lambda: self._system.get_file_info(self._bucket))
        if found.type == fs.FileType.NotFound:
            raise self._no_bucket()

    def list(self, directory: str) -> dict[str, int]:
        from pyarrow import fs

        selector = fs.FileSelector(f"{self._base}/{directory}", allow_not_found=True)
        found = self._ask(lambda: self._system.get_file_info(selector))
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}

    def draft(self, label: str) -> ObjectDraft:
        return ObjectDraft()

    def sweep(self, label: str) -> None: ...

    def publish(self, draft: Draft, name: str) -> int:
        assert isinstance(draft, ObjectDraft)
        size = draft.file.tell()
        draft.file.seek(0)
        self._ask(lambda: self._send(draft.file, name))
        draft.file.close()
        return size

    def _send(self, file: IO[bytes], name: str) -> None:
        file.seek(0)
        stream = self._system.open_output_stream(f"{self._base}/{name}")
        # Why no `with`: leaving it by an error would complete the object with what was sent by then.
        while data := file.read(_SEND_BYTES):
            stream.write(data)
        stream.close()

    def discard(self, draft: Draft) -> None:
        assert isinstance(draft, ObjectDraft)
        draft.file.close()

    def put(self, name: str, data: Buffer) -> None:
        def send() -> None:
            stream = self._system.open_output_stream(f"{self._base}/{name}")
            stream.write(data)
            stream.close()

        self._ask(send)

    def put_later(self, name: str, data: Buffer) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_SENDERS, "stepd-put")
        if len(self._sending) >= _WAITING_MAX:
            self._sending.popleft().result()
        self._sending.append(self._pool.submit(self.put, name, data))

    def settle(self) -> None:
        while self._sending:
            self._sending.popleft().result()

    def abandon(self) -> None:
        for one in self._sending:
            one.cancel()
        wait(self._sending)
        self._sending.clear()

    def get(self, name: str) -> bytes | None:
        def fetch() -> bytes:
            with self._system.open_input_stream(f"{self._base}/{name}") as stream:
                data: bytes = stream.read()
            return data

        try:
            return self._ask(fetch)
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        try:
            self._ask(lambda: self._system.delete_file(f"{self._base}/{name}"))
        except FileNotFoundError:
            pass

    def source(self, name: str) -> Any:
        import pyarrow

        data = self.get(name)  # one request; column by column it would be many
        if data is None:
            raise Retriable(f"{self.text}: {name} has gone since it was listed")
        return pyarrow.BufferReader(data)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._opened = None

    def _ask(self, operation: Callable[[], _Result]) -> _Result:
        try:
            return operation()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> Exception:
        told = " ".join(str(error).split())
        match = _AWS.search(told)
        if match is None:
            return Retriable(f"{self.text} does not answer: {told}")
        name, status = match[1], int(match[2] or 0)
        if name in _LATER or status >= 500 or status == 429:
            return Retriable(f"{self.text} cannot take anything now: {told}")
        if name == "NO_SUCH_BUCKET":
            return self._no_bucket()
        hint = _CREDENTIALS_HINT if name in _CREDENTIALS or _CREDENTIALS_TOLD.search(told) else None
        if status == 301:
            hint = f"--to 'parquet:{self.text}?region=NAME'   (the bucket is in another region)"
        return UsageError(f"{self.text} cannot be used: {told}", hint=hint)

    def _no_bucket(self) -> UsageError:
        where = f" at {self._endpoint}" if self._endpoint else ""
        return UsageError(f"there is no bucket {self._bucket!r}{where}", hint=f"aws s3 mb s3://{self._bucket}")
