"""The bytes that a line names by a path, an http(s) URL or a data URI.

Whatever goes wrong is a LineError whose words go on from the source's name: "is missing: …".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import os
import re
import stat
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from specdec_core.data.conversations import LineError
from specdec_core.errors import UserError

MAX_BYTES = 256 << 20
MAX_MEBIBYTES = MAX_BYTES >> 20
TIMEOUT = 20.0
"""Seconds without a byte after which a server counts as silent."""
DEADLINE = 120.0
"""Seconds that one download may take."""
PAUSES = (0.5, 2.0)
"""Seconds before a download is tried again, once for each."""
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
CHUNK = 1 << 20
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"
SHOWN = 60

State = tuple[int, int]
UNREADABLE: State = (-1, -1)


def is_remote(source: str) -> bool:
    """Whether a source is an http(s) URL."""
    return _scheme(source) in ("http", "https")


def is_inline(source: str) -> bool:
    """Whether a source is a data URI."""
    return _scheme(source) == "data"


def local_path(source: str, directory: Path) -> Path | None:
    """The file that a source names, if it names one; a relative path is one from `directory`."""
    scheme = _scheme(source)
    if scheme == "file":
        return Path(unquote(urlsplit(source).path))
    return directory / source if scheme is None else None


def state_of(path: Path) -> State:
    """Size in bytes and time of the last change in nanoseconds; `UNREADABLE` of what is no file that can be read."""
    try:
        found = path.stat()
        readable = stat.S_ISREG(found.st_mode) and os.access(path, os.R_OK)
    except (OSError, ValueError):
        return UNREADABLE
    return (found.st_size, found.st_mtime_ns) if readable else UNREADABLE


def shown(source: str) -> str:
    """A source as messages name it: data URIs and endless URLs are cut."""
    return source if len(source) <= 4 * SHOWN and not is_inline(source) else f"{source[:SHOWN]}…"


def media_type(source: str) -> str | None:
    """What a data URI says that it is, such as "image/png"; None if it says nothing or is no data URI."""
    if not is_inline(source):
        return None
    return source.split(":", 1)[1].split(",", 1)[0].split(";", 1)[0].strip().lower() or None


def read_source(source: str, directory: Path, downloads: Path) -> bytes:
    """The bytes of a source, at most 256 MiB. What is downloaded is kept in `downloads` and read there from then on.

    Raises LineError if there are none, and UserError if `downloads` cannot be written to.
    """
    path = local_path(source, directory)
    if path is not None:
        content = _read_file(path)
    elif is_inline(source):
        content = _decode_data(source)
    elif is_remote(source):
        content = _read_remote(source, downloads)
    else:
        raise LineError(
            "unsupported image address",
            f'begins with "{_scheme(source)}:", which is not supported; give a path, an http(s) URL or a data URI',
        )
    if not content:
        raise LineError("empty image", "is empty, it has 0 bytes; copy or make it again")
    return content


def forget(source: str, downloads: Path) -> None:
    """Remove what was kept of a URL, so that it is downloaded anew."""
    if is_remote(source):
        _kept(source, downloads).unlink(missing_ok=True)


def _scheme(source: str) -> str | None:
    """None of a path, also of one with a colon in it."""
    found = SCHEME.match(source)
    if found is None:
        return None
    scheme = found[1].lower()
    return scheme if scheme == "data" or source.startswith("//", found.end()) else None


def _read_file(path: Path) -> bytes:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise LineError("not a file", f"is a directory: {path}; name a file in it")
        if not stat.S_ISREG(found.st_mode):
            raise LineError("not a file", f"is a device, a socket or a pipe: {path}; name a file")
        if found.st_size > MAX_BYTES:
            raise _too_large()
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LineError("missing image", f"is missing: there is no file {path}; mend the path") from error
    except OSError as error:
        raise LineError("unreadable image", f"cannot be read: {error.strerror or error} ({path})") from error
    except ValueError as error:
        raise LineError("unreadable image", f"cannot be the name of a file: {error}; mend the path") from error


def _decode_data(source: str) -> bytes:
    head, comma, body = source.partition(",")
    if not comma:
        raise LineError("malformed data URI", "has no comma before its data; write data:image/png;base64,…")
    if not head.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(unquote(body).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise LineError(
            "malformed data URI", f"is not valid base64 after its comma: {str(error).lower()}; encode it again"
        ) from error


def _kept(url: str, downloads: Path) -> Path:
    return downloads / hashlib.sha256(url.encode()).hexdigest()


def _read_remote(url: str, downloads: Path) -> bytes:
    kept = _kept(url, downloads)
    with suppress(OSError):
        return kept.read_bytes()
    content = _download(url)
    if content:
        _keep(content, kept)
    return content


def _keep(content: bytes, path: Path) -> None:
    """Write aside, then rename: another process may be at the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="part-") as scratch:
            part = Path(scratch) / path.name
            part.write_bytes(content)
            part.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write downloaded images to {path.parent}: {error.strerror or error}; "
            "make room, or set data.cache_dir"
        ) from error


def _download(url: str) -> bytes:
    """Raises LineError with the last of several failures; at once if the server says that it has no such file."""
    for pause in (*PAUSES, None):
        try:
            return _fetch(url)
        except urllib.error.HTTPError as error:
            reason = f"the server says {error.code} {error.reason}"
            error.close()
            if error.code not in WORTH_ANOTHER_TRY:
                break
        except (http.client.InvalidURL, ValueError) as error:
            reason = f"no valid URL: {error}"
            break
        except urllib.error.URLError as error:
            reason = str(getattr(error.reason, "strerror", None) or error.reason)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        if pause is not None:
            time.sleep(pause)
    raise LineError("unreachable image", f"cannot be downloaded: {reason}; mend the URL, or save the image as a file")


def _fetch(url: str) -> bytes:
    begun = time.monotonic()
    headers = {"User-Agent": "specdec", "Accept": "image/*,*/*;q=0.5"}
    request = urllib.request.Request(quote(url, safe=URL_CHARACTERS), headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        promised = response.headers.get("Content-Length")
        content = bytearray()
        while chunk := response.read1(CHUNK):
            content += chunk
            if len(content) > MAX_BYTES:
                raise _too_large()
            if time.monotonic() - begun > DEADLINE:
                raise TimeoutError(f"not complete after {DEADLINE:.0f} seconds")
    if promised is not None and promised.isdigit() and len(content) < int(promised):
        raise OSError(f"the connection ended after {len(content)} of {promised} bytes")
    return bytes(content)


def _too_large() -> LineError:
    return LineError("huge image", f"has more than {MAX_MEBIBYTES} MiB; save it smaller")
