"""Opens one image file inside the decoder process."""

from __future__ import annotations

import os

from PIL import Image, ImageOps, UnidentifiedImageError

from blip3v.errors import CorruptVideoError
from blip3v.video_decoder.limits import VideoLimits

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


def open_image(path: str, limits: VideoLimits) -> Image.Image:
    """The picture at ``path`` in RGB, oriented by its EXIF data; the first picture of an animation.

    Raises:
        CorruptVideoError: it is not an image, or an incomplete one.
        VideoTooLargeError: over ``max_bytes`` or ``max_pixels``.
    """
    # Our own limit replaces PIL's, which only warns.
    Image.MAX_IMAGE_PIXELS = None
    try:
        limits.check_bytes(os.stat(path).st_size, path)
        with Image.open(path, formats=_FORMATS) as image:
            limits.check_pixels(image.width, image.height)
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise CorruptVideoError(f"{path} is not an image of a supported format: {', '.join(_FORMATS)}") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise CorruptVideoError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
