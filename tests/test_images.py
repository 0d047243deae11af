"""Reading images: where they come from, what they become, and what is said of those that cannot be used."""

from __future__ import annotations

import base64
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_images import png
from hypothesis import given, settings
from hypothesis import strategies as st
from image_server import Server, serving
from PIL import Image
from tiny_vision import encoded, picture

from specdec_core.data import images, sources
from specdec_core.data.conversations import LineError
from specdec_core.data.images import ImageReader
from specdec_core.data.sources import UNREADABLE, shown, state_of
from specdec_core.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
LOSSLESS = ["PNG", "BMP", "TIFF", "GIF", "PPM", "WEBP"]


def reader(tmp_path: Path, policy: Any = "strict", **options: Any) -> ImageReader:
    return ImageReader(tmp_path / "downloads", policy, **options)


def saved(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return path.name


def refused(tmp_path: Path, source: str, policy: Any = "strict", **options: Any) -> LineError:
    with pytest.raises(LineError) as caught:
        reader(tmp_path, policy, **options).read(source, tmp_path)
    return caught.value


def pixels(image: Image.Image) -> Any:
    return np.asarray(image).tolist()


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG", "AVIF", "JPEG2000"])
def test_every_format_is_read(tmp_path: Path, kind: str) -> None:
    whole = picture()
    suffix = {"JPEG": "jpg", "JPEG2000": "jp2"}.get(kind, kind.lower())
    options = {"lossless": True} if kind == "WEBP" else {}
    source = saved(tmp_path / f"a.{suffix}", encoded(whole.quantize(64) if kind == "GIF" else whole, kind, **options))
    image, digest = reader(tmp_path).read(source, tmp_path)
    assert (image.mode, image.size) == ("RGB", (60, 40))
    if kind in LOSSLESS and kind != "GIF":
        assert pixels(image) == pixels(whole)
    assert reader(tmp_path, "lenient").read(str(tmp_path / source), Path("/"))[1] == digest


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 255, 255))
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (9, 255))
    indexed = Image.new("P", (2, 1), 0)
    indexed.putpalette([1, 2, 3, 9, 9, 9])
    indexed.putpixel((1, 0), 1)
    cases: list[Any] = [(half, {}, [0, 0, 255]), (grey, {}, [9] * 3), (indexed, {"transparency": 0}, [9] * 3)]
    for image, options, second in cases:
        source = saved(tmp_path / "a.png", encoded(image, **options))
        assert pixels(reader(tmp_path).read(source, tmp_path)[0]) == [[[255] * 3, second]]


def test_an_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    upright = picture()
    source = saved(tmp_path / "a.png", encoded(upright, exif=exif))
    image, _ = reader(tmp_path).read(source, tmp_path)
    assert pixels(image) == pixels(upright.transpose(Image.Transpose.ROTATE_270))
    saved(tmp_path / "a.png", encoded(upright, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert pixels(reader(tmp_path).read(source, tmp_path)[0]) == pixels(upright)


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    ramp = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], dtype=np.uint16)
    source = saved(tmp_path / "a.png", encoded(Image.fromarray(ramp)))
    assert np.asarray(reader(tmp_path).read(source, tmp_path)[0])[0, :, 1].tolist() == [0, 0, 1, 0x7F, 0xFF]


def test_what_the_policy_decides(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    colours = [picture(seed=seed).quantize(16) for seed in range(3)]
    frames = {"save_all": True, "append_images": colours[1:]}
    cases = [
        ("a.jpg", encoded(cmyk, "JPEG"), "is in CMYK, the colours of print; save it as RGB, or set", "to convert it"),
        ("a.gif", encoded(colours[0], "GIF", **frames), "is animated or has several pages; save", "read the first"),
        ("a.webp", encoded(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)]), "is animated", ""),
        ("b.png", encoded(picture(), "PNG", save_all=True, append_images=[picture(seed=1)]), "is animated", ""),
        ("a.tif", encoded(picture(), "TIFF", save_all=True, append_images=[picture(seed=1)]), "is animated", ""),
        ("a.png", encoded(picture(), "JPEG"), "is named .png but holds JPEG; rename it, or set", "to read it as that"),
        ("c.JPG", encoded(picture(), "PNG"), "is named .jpg but holds PNG", ""),
    ]  # fmt: skip
    for name, content, fault, mend in cases:
        source = saved(tmp_path / name, content)
        message = refused(tmp_path, source).message
        assert message.startswith(fault)
        assert 'data.images = "lenient"' in message
        assert mend in message
        image, _ = reader(tmp_path, "lenient").read(source, tmp_path)
        assert image.mode == "RGB"
    red, _ = reader(tmp_path, "lenient").read("a.jpg", tmp_path)
    assert np.abs(np.asarray(red).astype(int) - (255, 0, 0)).max() < 40
    first, _ = reader(tmp_path, "lenient").read("a.gif", tmp_path)
    assert pixels(first) == pixels(colours[0].convert("RGB"))


def test_names_that_say_nothing_wrong(tmp_path: Path) -> None:
    two = encoded(picture(), "MPO", save_all=True, append_images=[picture(seed=1)])
    for name, content in [
        ("a.jpg", two),  # as cameras write and name them
        ("a", encoded(picture())),
        ("a.2024", encoded(picture())),
        ("a.JPEG", encoded(picture(), "JPEG")),
        ("a.jfif", encoded(picture(), "JPEG")),
    ]:
        assert reader(tmp_path).read(saved(tmp_path / name, content), tmp_path)[0].size == (60, 40)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    source = saved(tmp_path / "bomb.png", png(60_000, 60_000))
    error = refused(tmp_path, source)
    assert error.reason == "huge image"
    assert error.message == (
        "has more than 178,956,970 pixels, and data.max_image_pixels is 89,478,485; save it smaller, or raise the limit"
    )
    saved(tmp_path / "bomb.png", png(10_000, 9_000))
    assert refused(tmp_path, source).message.startswith("has 10,000 × 9,000 pixels, and data.max_image_pixels is 89,")
    source = saved(tmp_path / "a.png", encoded(picture()))
    assert refused(tmp_path, source, max_pixels=60 * 40 - 1).reason == "huge image"
    assert reader(tmp_path, max_pixels=60 * 40).read(source, tmp_path)[0].size == (60, 40)


CONTENTS = [
    (b"", "empty image", "is empty, it has 0 bytes"),
    (png(0, 5), "empty image", "has a width or a height of 0 pixels; leave it out"),
    (encoded(picture())[:-900], "truncated image", "is cut short (image file is truncated"),
    (encoded(picture(), "JPEG")[:400], "truncated image", "is cut short ("),
    (b"\x89PNG\r\n\x1a\n garbage", "truncated image", "is cut short ("),
    (encoded(picture(), "BMP").replace(b"\x28\0\0\0\x3c", b"\x28\0\0\0\0", 1), "empty image", "has a width or"),
    (b"\xff\xd8\xff\xff garbage", "corrupt image", "is damaged ("),
    (b"GIF89a", "corrupt image", "is damaged ("),
    (b"hello, world", "not an image", "is no image: its first bytes are those of no known format"),
    (b"\n<!DOCTYPE html><title>404</title>", "not an image", "is no image but a web page, perhaps an error message"),
    (b"version https://git-lfs.github.com/spec/v1\n", "not an image", "a Git LFS pointer, so that the image itself"),
    (b"%PDF-1.7", "not an image", "is no image but a PDF"),
    (b"\0\0\0\x18ftypheic", "unsupported image", "is HEIC, which is not read; save it as PNG or JPEG"),
    (b'<?xml version="1.0"?>\n<svg xmlns=""/>', "unsupported image", "is SVG, which is not read"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported image", "is EPS, which is not read"),
    (encoded(picture(), "ICO"), "unsupported image", "is ICO, which is not read"),
    (encoded(Image.new("F", (3, 3)), "TIFF"), "unsupported image", "has pixels of Pillow's mode F; save it as RGB"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "reason", "message"), CONTENTS)
def test_bytes_that_are_no_image(tmp_path: Path, content: bytes, reason: str, message: str) -> None:
    for policy in ("strict", "lenient"):
        error = refused(tmp_path, saved(tmp_path / "a", content), policy)
        assert error.reason == reason
        assert message in error.message


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_of_any_kind_is_a_sentence_or_an_image(tmp_path_factory: Any, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM"]))
    content = bytearray(encoded(picture(24, 16), kind))
    for at in data.draw(st.lists(st.integers(0, min(200, len(content) - 1)), max_size=8)):
        content[at] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    source = f"data:;base64,{base64.b64encode(content).decode()}"
    try:
        said = ImageReader(Path("nowhere"), "lenient", 10_000).read(source, Path())[0].mode
    except LineError as error:
        said = error.message
    assert said.startswith(("RGB", "is ", "has "))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe")
    saved(tmp_path / "file", b"x")
    for source, reason, message in [
        ("a.png", "missing image", f"is missing: there is no file {tmp_path}/a.png; mend the path"),
        ("gone", "missing image", "is missing"),
        ("file/a.png", "missing image", "is missing"),
        ("folder", "not a file", f"is a directory: {tmp_path}/folder; name a file in it"),
        ("pipe", "not a file", "is a device, a socket or a pipe"),
        ("/dev/zero", "not a file", "is a device, a socket or a pipe: /dev/zero"),
        ("loop", "unreadable image", "cannot be read: Too many levels of symbolic links"),
        ("a\0b", "unreadable image", "cannot be the name of a file: embedded null byte"),
        ("n" * 300, "unreadable image", "cannot be read: File name too long"),
        ("ftp://host/a.png", "unsupported image address", 'begins with "ftp:", which is not supported; give a path'),
    ]:
        error = refused(tmp_path, source)
        assert error.reason == reason
        assert message in error.message
    assert state_of(tmp_path / "file")[0] == 1
    assert {state_of(tmp_path / name) for name in ("a.png", "folder", "pipe", "loop", "a\0b")} == {UNREADABLE}


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may read everything; so the test is somebody else for a while."""
    if os.geteuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    yield
    os.setresuid(0, 0, 0)


@pytest.fixture
def closed_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "a.png"
        path.write_bytes(encoded(picture()))
        path.chmod(0)
        yield path


def test_a_file_that_is_not_ours_to_read(closed_file: Path, nobody: None) -> None:
    assert refused(closed_file.parent, "a.png").message == f"cannot be read: Permission denied ({closed_file})"
    assert state_of(closed_file) == UNREADABLE


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "film").open("wb") as file:
        file.truncate((256 << 20) + 1)
    assert refused(tmp_path, "film").message == "has more than 256 MiB; save it smaller"


def test_file_urls_and_names_with_colons(tmp_path: Path) -> None:
    saved(tmp_path / "a b:c.png", encoded(picture()))
    for source in ("a b:c.png", f"file://{tmp_path}/a%20b%3Ac.png"):
        assert reader(tmp_path).read(source, tmp_path)[0].size == (60, 40)


def test_data_uris(tmp_path: Path) -> None:
    body = base64.b64encode(encoded(picture())).decode()
    percent = "".join(f"%{byte:02x}" for byte in encoded(picture()))
    for source in (
        f"data:image/png;base64,{body}",
        f"data:;base64,{body[:80]}\n{body[80:]}",
        f"DATA:image/PNG;BASE64,{body.replace('+', '%2B')}",
        f"data:image/png,{percent}",
        f"data:application/octet-stream;base64,{body}",
    ):
        assert reader(tmp_path).read(source, Path())[0].size == (60, 40)
    for source, message in [
        ("data:image/png;base64", "has no comma before its data; write data:image/png;base64,…"),
        ("data:image/png;base64,", "is empty, it has 0 bytes"),
        (f"data:image/png;base64,{body[:-3]}", "is not valid base64 after its comma: "),
        ("data:image/png;base64,ää", "is not valid base64 after its comma: "),
        (f"data:image/jpeg;base64,{body}", "is named image/jpeg but holds PNG; rename it, or set"),
        (f"data:image/jpg;base64,{body}", "is named image/jpg but holds PNG; rename it, or set"),
        ("data:text/html,<html>", "is no image but a web page"),
    ]:
        assert message in refused(tmp_path, source).message
    assert shown(f"data:image/png;base64,{body}").endswith("…")
    assert len(shown(f"data:image/png;base64,{body}")) < 80


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "PAUSES", (0.0, 0.0))
    with serving() as found:
        yield found


def test_an_image_is_downloaded_once(tmp_path: Path, server: Server) -> None:
    server.files["/a.jpg"] = encoded(picture())
    for _ in range(2):
        image, _ = reader(tmp_path).read(f"{server.url}/a.jpg", Path("/nowhere"))
        assert pixels(image) == pixels(picture())
    assert server.asked == ["/a.jpg"]
    assert len(list((tmp_path / "downloads").iterdir())) == 1
    server.files["/gr%C3%BCn%20a.png?x=1"] = encoded(picture())
    assert reader(tmp_path).read(f"{server.url}/grün a.png?x=1", tmp_path)[0].size == (60, 40)


def test_a_server_gets_another_chance(tmp_path: Path, server: Server) -> None:
    cut = encoded(picture())

    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(cut)))
        handler.end_headers()
        handler.wfile.write(cut[:100])

    server.files["/a"] = [503, half, cut]
    assert reader(tmp_path).read(f"{server.url}/a", tmp_path)[0].size == (60, 40)
    assert len(server.asked) == 3
    server.files["/b"] = half
    message = f"the connection ended after 100 of {len(cut)} bytes; mend the URL, or save the image as a file"
    assert message in refused(tmp_path, f"{server.url}/b").message
    assert server.asked.count("/b") == 3


def test_urls_that_give_no_image(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 5000)
    server.files.update({"/empty": b"", "/large": bytes(9000), "/page": b"<html>", "/busy": 500})
    for path, message in [
        ("/absent", "cannot be downloaded: the server says 404 Not Found; mend the URL, or save the image as a file"),
        ("/busy", "cannot be downloaded: the server says 500 Internal Server Error"),
        ("/empty", "is empty, it has 0 bytes"),
        ("/large", "has more than 256 MiB"),
        ("/page", "is no image but a web page"),
    ]:
        assert message in refused(tmp_path, server.url + path).message
    assert [server.asked.count(path) for path in ("/absent", "/busy")] == [1, 3]
    assert "cannot be downloaded: Connection refused" in refused(tmp_path, "http://127.0.0.1:9/a.png").message
    assert "no valid URL" in refused(tmp_path, "http://127.0.0.1:port/a.png").message
    # What is no image is not kept: the server may send the image next time.
    server.files["/empty"] = encoded(picture(20, 20))
    assert reader(tmp_path).read(f"{server.url}/empty", tmp_path)[0].size == (20, 20)
    server.files["/page"] = encoded(picture())[:2000]
    assert refused(tmp_path, f"{server.url}/page").reason == "truncated image"


def test_pillow_is_asked_for_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images._pillow.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r'which reads them, is not installed; pip install "specdec-core\[images\]"'):
        reader(tmp_path).read("a.png", tmp_path)


def test_a_silent_server_is_not_waited_for_long(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TIMEOUT", 0.1)
    waiting = threading.Event()
    server.files["/a"] = lambda _: waiting.wait(10)
    assert "cannot be downloaded: timed out" in refused(tmp_path, f"{server.url}/a").message
    waiting.set()


def test_downloads_that_cannot_be_kept_are_the_users_to_mend(tmp_path: Path, server: Server) -> None:
    server.files["/a"] = encoded(picture())
    saved(tmp_path / "downloads", b"a file")
    with pytest.raises(UserError, match=r"cannot write downloaded images to .*downloads: .*set data\.cache_dir"):
        reader(tmp_path).read(f"{server.url}/a", tmp_path)
