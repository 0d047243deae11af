"""Images: read whole, checked, and brought to RGB.

Whatever is wrong with one is a LineError whose words go on from its name, as in `specdec_core.data.sources`.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

import numpy as np

from specdec_core.data.conversations import LineError
from specdec_core.data.sources import forget, is_remote, media_type, read_source
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_T = TypeVar("_T")
ImagePolicy = Literal["strict", "lenient"]
MAX_PIXELS = 89_478_485
"""Pixels from which Pillow itself warns; from twice as many on it refuses."""

# Pillow knows more; those are rare, or run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
# Cameras write a second picture after a JPEG's first (a preview, a depth map) and name the file .jpg all the same.
SAME_FORMAT: Mapping[str, str] = {"MPO": "JPEG"}
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr", "CMYK", "I;16", "I;16L", "I;16B")

Known = Literal["read", "unsupported", "foreign"]
# How files begin, what they are, and whether they are images that are read, images that are not, or no images.
BEGINNINGS: tuple[tuple[str, str, Known], ...] = (
    (r"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|\xff\x4f\xff\x51", "", "read"),
    (r"\0\0\0\x0cjP  ", "", "read"),
    (r"....ftypavi[fs]", "AVIF", "unsupported"),
    (r"....ftyp(?:hei[cfsmx]|hev[cx]|mif1|msf1)", "HEIC", "unsupported"),
    (r"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", "unsupported"),
    (r"8BPS", "PSD", "unsupported"),
    (r"\0\0\x01\0", "ICO", "unsupported"),
    (r"%!PS|\xc5\xd0\xd3\xc6", "EPS", "unsupported"),
    (r"qoif", "QOI", "unsupported"),
    (r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG", "unsupported"),
    (r"%PDF", "a PDF", "foreign"),
    (r"version https://git-lfs", "a Git LFS pointer, so that the image itself was not fetched", "foreign"),
    (r"\s*<(?:!doctype html|html|head|body|\?xml)", "a web page, perhaps an error message", "foreign"),
    (r"PK\x03\x04", "a ZIP archive", "foreign"),
    (r"....ftyp|\x1a\x45\xdf\xa3", "a film", "foreign"),
)
# Where headers keep width and height.
SIZES = ((b"\x89PNG", 16, ">II"), (b"BM", 18, "<ii"))


@dataclass(frozen=True)
class ImageReader:
    """Reads what lines name, by the run's policy.

    policy      "strict": an image in CMYK, an animated or a wrongly named one is refused. "lenient": it is converted,
                its first frame is taken, it is read as what it is
    max_pixels  an image with more is refused before it is decoded
    downloads   where downloaded images are kept
    """

    downloads: Path
    policy: ImagePolicy = "strict"
    max_pixels: int = MAX_PIXELS

    def read(self, source: str, directory: Path) -> tuple[Picture, str]:
        """The image in RGB and a digest of its bytes; a relative path is one from `directory`.

        It is turned as its EXIF orientation says; what is transparent lies on white. Raises LineError if the image
        cannot be used, and UserError if Pillow is not installed.
        """
        _pillow()
        content = read_source(source, directory, self.downloads)
        try:
            return self._decoded(content, source), hashlib.blake2b(content, digest_size=16).hexdigest()
        except LineError:
            forget(source, self.downloads)
            raise

    def _decoded(self, content: bytes, source: str) -> Picture:
        image = self._opened(content)
        if image.width * image.height > self.max_pixels:
            raise self._huge(f"{image.width:,} × {image.height:,} pixels")
        self._check_name(image, source)
        if _tried(lambda: getattr(image, "is_animated", False)) and image.format not in SAME_FORMAT:
            self._may_mend(
                "animated image", "is animated or has several pages", "save one of its frames", "read the first"
            )
        _tried(image.load)
        if image.mode == "CMYK":
            self._may_mend("CMYK image", "is in CMYK, the colours of print", "save it as RGB", "convert it")
        if image.mode not in MODES:
            raise LineError("unsupported image", f"has pixels of Pillow's mode {image.mode}; save it as RGB")
        return _tried(lambda: _to_rgb(image))

    def _opened(self, content: bytes) -> Picture:
        """The image with its header read."""
        pillow = _pillow()
        try:
            image: Picture = pillow.open(BytesIO(content), formats=[name for name in FORMATS if name in pillow.OPEN])
        except pillow.DecompressionBombError as error:
            raise self._huge(f"more than {2 * MAX_PIXELS:,} pixels") from error
        except Exception as error:  # Pillow's readers fail in all the ways that damaged bytes can make them
            _refuse(content, error)
        return image

    def _check_name(self, image: Picture, source: str) -> None:
        claimed, name = _claimed(source)
        held = SAME_FORMAT.get(image.format or "", image.format)
        if claimed is not None and SAME_FORMAT.get(claimed, claimed) != held:
            self._may_mend("wrongly named image", f"is named {name} but holds {held}", "rename it", "read it as that")

    def _may_mend(self, reason: str, fault: str, mend: str, lenient: str) -> None:
        if self.policy == "strict":
            raise LineError(reason, f'{fault}; {mend}, or set data.images = "lenient" to {lenient}')

    def _huge(self, size: str) -> LineError:
        return LineError(
            "huge image",
            f"has {size}, and data.max_image_pixels is {self.max_pixels:,}; save it smaller, or raise the limit",
        )


def _refuse(content: bytes, error: Exception) -> NoReturn:
    """Raise what fits the bytes of a file that Pillow does not open."""
    beginning = content[:1024]
    for pattern, name, known in BEGINNINGS:
        if re.match(pattern.encode("latin-1"), beginning, re.DOTALL | re.IGNORECASE):
            if known == "read" and _says_zero(content):
                raise LineError("empty image", "has a width or a height of 0 pixels; leave it out") from error
            if known == "read":
                raise _damaged(error) from error
            if known == "unsupported":
                raise LineError("unsupported image", f"is {name}, which is not read; save it as PNG or JPEG") from error
            raise LineError("not an image", f"is no image but {name}; put the image in its place") from error
    raise LineError("not an image", "is no image: its first bytes are those of no known format") from error


def _says_zero(content: bytes) -> bool:
    """Whether a header gives a size of zero, which Pillow takes for damage."""
    for beginning, offset, layout in SIZES:
        if content.startswith(beginning) and len(content) >= offset + struct.calcsize(layout):
            return 0 in struct.unpack_from(layout, content, offset)
    return False


def _damaged(error: Exception) -> LineError:
    words = str(error).partition(" <_io")[0].strip() or type(error).__name__
    if isinstance(error, EOFError) or "truncated" in words.lower():
        return LineError("truncated image", f"is cut short ({words}); copy or make it again")
    return LineError("corrupt image", f"is damaged ({words}); copy or make it again")


def _tried(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except Exception as error:  # as above
        raise _damaged(error) from error


def _claimed(source: str) -> tuple[str | None, str]:
    """The format that a source's name speaks of, if it does, and the word that says so.

    The last letters of a URL are no claim: servers send what they have.
    """
    said = media_type(source)
    if said is not None:
        return _formats_of_types().get(said), said
    if is_remote(source):
        return None, ""
    suffix = Path(source).suffix.lower()
    return _pillow().registered_extensions().get(suffix), suffix


def _to_rgb(image: Picture) -> Picture:
    from PIL import Image, ImageOps

    with suppress(Exception):  # what its EXIF says cannot be read; the picture can
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would cut all that is brighter than 255 of 65535.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@functools.cache
def _formats_of_types() -> dict[str, str]:
    types: Mapping[str, str] = _pillow().MIME
    return {**{types[name]: name for name in types}, "image/jpg": "JPEG", "image/bmp": "BMP"}


@functools.cache
def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            'the data has images, and Pillow, which reads them, is not installed; pip install "specdec-core[images]"'
        ) from error
    # What these warn of is either refused with a sentence of ours, or harmless (odd EXIF fields).
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.init()
    return Image
