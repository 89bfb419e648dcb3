"""Where runs are to go: a URL such as ``parquet:s3://bucket/prefix?layout=long``."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from sdk._secrets import is_secret_name
from sdk._syncing import SCHEMES, elsewhere_hint, holds_login, is_elsewhere, is_in_directory
from sdk.errors import UsageError

_SCHEME = re.compile(r"([a-z][a-z0-9_+-]{0,31}):(.*)", re.DOTALL)
_OPTIONS = re.compile(r"(.*?)\?([A-Za-z_]+=[^?]*)", re.DOTALL)


class Place(NamedTuple):
    """A target as it was named. Holds no secret: `parse` refuses credentials.

    Attributes:
        scheme: Which kind: "tensorboard", "parquet", …
        path: What stands behind the colon, without options: a directory, a server's URL, a project.
        options: What stands behind the "?", by name.
    """

    scheme: str
    path: str
    options: Mapping[str, str]

    @property
    def text(self) -> str:
        """The URL, as it may be shown and stored."""
        options = f"?{urlencode(sorted(self.options.items()), safe=':/')}" if self.options else ""
        return f"{self.scheme}:{self.path}{options}"

    @property
    def digest(self) -> str:
        """A name for what is kept about this target: 16 hex digits."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def absolute(self, base: str | None = None) -> Place:
        """The same with a relative directory made absolute; what is no directory stays as it is."""
        if not self.is_directory:
            return self
        path = os.path.expanduser(self.path)
        return self._replace(path=os.path.abspath(os.path.join(base or os.getcwd(), path)))

    @property
    def is_directory(self) -> bool:
        """Whether the path is a directory of this machine."""
        return is_in_directory(self.scheme, self.path)


def parse(url: str) -> Place:
    """The place that a URL names.

    Raises:
        UsageError: It has no scheme, no directory of this machine where it needs one, or holds a user or password, which would be
            stored and shown with it.
    """
    match = _SCHEME.fullmatch(url)
    if match is None:
        raise UsageError(
            f"{url!r} is no target, expected KIND:WHERE. There are {', '.join(SCHEMES)}",
            hint="--to tensorboard:runs, --to parquet:s3://bucket/prefix",
        )
    scheme, rest = match[1], match[2]
    with_options = _OPTIONS.fullmatch(rest)
    path, options = (rest, "") if with_options is None else (with_options[1], with_options[2])
    chosen = dict(parse_qsl(options, keep_blank_values=True))
    if holds_login(scheme, rest) or any(is_secret_name(name) for name in chosen):
        # Why the URL is not told: it holds the password.
        raise UsageError(
            f"the target of kind {scheme!r} holds a user or password, which would be stored and shown with it",
            hint=_CURES.get(scheme, "give them in the environment variables that the service's own library reads"),
        )
    place = Place(scheme, path, MappingProxyType(chosen))
    if place.is_directory and not path:
        raise UsageError(f"{url!r} names no directory", hint=f"--to {scheme}:DIR")
    if is_elsewhere(scheme, path):
        raise UsageError(
            f"{url!r} is no directory of this machine, as {scheme!r} expects", hint=elsewhere_hint(scheme, path)
        )
    return place


_CURES = {
    "mlflow": "MLFLOW_TRACKING_USERNAME=… MLFLOW_TRACKING_PASSWORD=… stepd sync …",
    "parquet": "AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… stepd sync …",
    "wandb": "WANDB_API_KEY=… stepd sync …",
}
