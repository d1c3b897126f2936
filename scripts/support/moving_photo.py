"""Real pictures for face swap, made from scikit-image's photographs: a video with a face in it, and a cut-out."""
from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data

HEAD = (slice(0, 230), slice(110, 340))  # of the astronaut: head and collar
FPS = 16


def cut_out() -> np.ndarray:
    """[230, 230, 4] uint8: the astronaut's head, mirrored and toned like another person, an ellipse around as alpha."""
    head = skimage.data.astronaut()[HEAD][:, ::-1].astype(np.float32) * (0.75, 0.62, 0.5)
    size = head.shape[0]
    alpha = np.zeros((size, size), np.uint8)
    cv2.ellipse(alpha, (size // 2, round(0.45 * size)), (round(0.27 * size), round(0.37 * size)), 0, 0, 360, 255, -1)
    return np.dstack((head.astype(np.uint8), alpha))


def video(length: int, width: int, height: int) -> np.ndarray:
    """[length, height, width, 3] uint8: the head sways, tilts and comes nearer before a still background."""
    background = cv2.resize(skimage.data.coffee(), (width, height), interpolation=cv2.INTER_AREA)
    head = skimage.data.astronaut()[HEAD]
    frames = np.empty((length, height, width, 3), np.uint8)
    for i in range(length):
        matrix = head_to_frame(i, width, height)
        moved = cv2.warpAffine(head, matrix, (width, height), flags=cv2.INTER_AREA)
        inside = cv2.warpAffine(np.full(head.shape[:2], 255, np.uint8), matrix, (width, height)) > 127
        frames[i] = np.where(inside[..., None], moved, background)
    return frames


def head_to_frame(i: int, width: int, height: int) -> np.ndarray:
    """[2, 3], where the head's picture lies in frame i."""
    turn = 2 * math.pi * i / 40
    scale = 0.8 * height / 230 * (1 + 0.06 * math.sin(turn))
    matrix = cv2.getRotationMatrix2D((115, 115), 4 * math.sin(turn), scale)
    matrix[:, 2] += (width / 2 - 115 + 0.08 * width * math.sin(turn), height / 2 - 115)
    return matrix


def write_video(path: Path, frames: np.ndarray) -> None:
    """H.264 near lossless, so that what a test compares is not the codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "4"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
