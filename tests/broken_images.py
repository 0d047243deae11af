"""Two hundred images that cannot be used, each broken in its own way."""

from __future__ import annotations

import base64
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tiny_vision import encoded, picture

SUFFIXES = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
# Where a changed byte cannot pass: signatures, and what a checksum covers.
VITAL = {"PNG": range(33), "JPEG": range(2), "GIF": range(4), "WEBP": [*range(4), *range(8, 12)]}
CLOSED = "http://127.0.0.1:9"
"""Nobody listens there."""

Broken = tuple[str, str, bool]
"""What a line says, what is said of it, and whether leniency helps."""


def png(width: int, height: int) -> bytes:
    """A PNG that says it is of a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def break_images(directory: Path, seed: int = 0) -> list[Broken]:
    """Make them in a directory, at random but the same for a seed."""
    rng = random.Random(seed)
    made: list[Broken] = []

    def file(content: bytes, suffix: str, said: str, mended: bool = False) -> None:
        name = f"{len(made):03}.{suffix}"
        (directory / name).write_bytes(content)
        made.append((name, said, mended))

    def some() -> Image.Image:
        return picture(rng.randint(20, 60), rng.randint(20, 60), rng.randint(0, 99))

    for kind, suffix in SUFFIXES.items():
        for _ in range(12):
            content = encoded(some(), kind)
            file(content[: rng.randint(1, len(content) * 9 // 10)], suffix, "is ")
    for kind, places in VITAL.items():
        for _ in range(10):
            content = bytearray(encoded(some(), kind))
            content[rng.choice(places)] ^= rng.randint(1, 255)
            file(bytes(content), SUFFIXES[kind], "is ")
    for suffix in SUFFIXES.values():
        file(b"", suffix, "is empty, it has 0 bytes")
    for width, height in [(0, 7), (7, 0), (0, 0)]:
        file(png(width, height), "png", "has a width or a height of 0 pixels")
    for _ in range(8):
        file(png(rng.randint(10_000, 2**31 - 1), rng.randint(9_000, 2**31 - 1)), "png", "data.max_image_pixels")
    for _ in range(8):
        kind, suffix = rng.choice([("JPEG", "jpg"), ("TIFF", "tif")])
        file(encoded(some().convert("CMYK"), kind), suffix, "is in CMYK", mended=True)
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        for _ in range(4):
            more = [picture(20, 20, seed=index) for index in range(1, rng.randint(2, 4))]
            film = encoded(picture(20, 20), kind, save_all=True, append_images=more)
            file(film, SUFFIXES[kind], "is animated or has several pages", mended=True)
    for kind, suffix in SUFFIXES.items():
        for other in rng.sample(sorted(set(SUFFIXES.values()) - {suffix}), 2):
            file(encoded(some(), kind), other, f"is named .{other} but holds {kind}", mended=True)
    for beginning, said in [
        (b"<!doctype html>", "a web page"), (b"version https://git-lfs", "Git LFS"), (b"%PDF-1.4", "a PDF"),
        (b"PK\3\4", "a ZIP"), (b"\0\0\0\x18ftypheic", "HEIC"), (b"<svg/>", "SVG"), (b"%!PS", "EPS"),
        (b"words", "no known"),
    ]:  # fmt: skip
        file(beginning + rng.randbytes(40), "jpg", said)
    made += [
        *_no_files(directory),
        *_no_uris(rng),
        *((f"{CLOSED}/{n}.png", "Connection refused", False) for n in range(4)),
    ]
    return made


def _no_files(directory: Path) -> Iterator[Broken]:
    for index in range(4):
        (directory / f"folder{index}.png").mkdir()
        yield f"folder{index}.png", "is a directory", False
        (directory / f"loop{index}.png").symlink_to(f"loop{index}.png")
        yield f"loop{index}.png", "Too many levels of symbolic links", False
        yield f"absent{index}.png", "is missing: there is no file", False
    os.mkfifo(directory / "pipe.png")
    yield "pipe.png", "is a device, a socket or a pipe", False
    yield "/dev/zero", "is a device, a socket or a pipe", False
    yield "null\0byte.png", "cannot be the name of a file", False
    yield "long" * 100, "File name too long", False


def _no_uris(rng: random.Random) -> Iterator[Broken]:
    body = base64.b64encode(encoded(picture())).decode()
    yield "data:image/png;base64", "has no comma", False
    yield "data:image/png;base64,", "is empty", False
    yield f"data:image/png;base64,{body[:-1]}", "is not valid base64", False
    yield f"data:image/png;base64,?{body}", "is not valid base64", False
    yield f"data:image/webp;base64,{body}", "is named image/webp but holds PNG", True
    for _ in range(3):
        yield f"data:image/png;base64,{body[: 4 * rng.randint(1, 500)]}", "is ", False
    yield "ftp://127.0.0.1/a.png", 'begins with "ftp:"', False
    yield "s3://bucket/a.png", 'begins with "s3:"', False
