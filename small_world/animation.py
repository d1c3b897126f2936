"""Videos of the small world as pictures that play by themselves."""
from __future__ import annotations

import io

import numpy as np
import PIL.Image

FRAME_MS = 125
QUALITY = 85


def there_and_back(video: np.ndarray) -> np.ndarray:
    """[F, H, W, 3] -> [2 F - 2, H, W, 3], whose end leads to its beginning."""
    return np.concatenate((video, video[-2:0:-1]))


def enlarged(picture: np.ndarray, height: int) -> PIL.Image.Image:
    """picture: [H, W, 3] uint8."""
    image = PIL.Image.fromarray(picture)
    return image.resize((image.width * height // image.height, height), PIL.Image.Resampling.LANCZOS)


def animated_webp(frames: list[PIL.Image.Image]) -> bytes:
    """A file that plays the frames for ever."""
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, quality=QUALITY,
                   method=6)
    return file.getvalue()
