"""Reading videos: FFmpeg's own filters (through PyAV, which ComfyUI brings) resample, resize and crop."""
from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import comfy.model_management
import numpy as np

from .dropped import Cause, Unusable

# What a file claims is believed up to here. A longer pause between two frames is no film of a person but a damaged time
# stamp, and would be filled with copies of one frame without end; a larger frame takes gigabytes.
LONGEST_PAUSE_SECONDS = 5.0
MOST_PIXELS = 8192 * 8192

# quarters counter-clockwise -> FFmpeg's filters that turn a frame by them
TURNS = {0: (), 1: (("transpose", "cclock"),), 2: (("hflip", None), ("vflip", None)), 3: (("transpose", "clock"),)}


def decoded(path: Path, fps: float, size: tuple[int, int] | None = None) -> Iterator[av.VideoFrame]:
    """The frames of a video, upright.

    fps: to which the video is resampled.
    size: (width, height) that a frame is scaled up or down to fill and then cropped to, about its middle; None for the
        video's own size.

    Raises Unusable where the file is no video or is damaged, or claims what cannot be.
    """
    number = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Unusable(Cause.NOT_VIDEO, "only sound or pictures")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise Unusable(Cause.UNREADABLE, "it does not say how it is encoded")
            _check_size(stream.width, stream.height, stream.sample_aspect_ratio)
            stream.thread_type = "AUTO"
            graph, before = None, None
            for frame in _frames(container, stream):
                _check_size(frame.width, frame.height, stream.sample_aspect_ratio)
                if frame.time is not None:
                    if before is not None and frame.time - before > LONGEST_PAUSE_SECONDS:
                        raise Unusable(Cause.UNREADABLE, f"after {before:.1f} s, the next frame is stamped "
                                       f"{frame.time:.1f} s, and a pause is at most {LONGEST_PAUSE_SECONDS:g} s")
                    before = frame.time
                graph = graph or _graph(stream, frame, fps, size)
                graph.vpush(frame)
                for out in _ready(graph):
                    number += 1
                    yield out
            if graph is not None:
                graph.vpush(None)
                yield from _ready(graph)
    except Unusable:  # which is a ValueError too
        raise
    except (av.FFmpegError, ValueError) as error:  # PyAV raises ValueError for what it does not expect
        raise Unusable(Cause.UNREADABLE, f"after {number / fps:.1f} s, {error}") from error


def pixels(frame: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] uint8 RGB"""
    return frame.to_ndarray(format="rgb24")


def clips(path: Path, fps: float, size: tuple[int, int], starts: list[int],
          length: int) -> Iterator[tuple[int, np.ndarray]]:
    """Read parts of a video in one pass.

    starts: numbers of the first frames, rising, so far apart that no two parts overlap.
    length: frames of a part.

    Yields (start, frames [length, H, W, 3] uint8); parts beyond the end of the video are left out.
    """
    waiting, frames = list(starts), []
    for number, frame in enumerate(decoded(path, fps, size)):
        if not waiting:
            return
        if number >= waiting[0]:
            frames.append(pixels(frame))
        if len(frames) == length:
            yield waiting.pop(0), np.stack(frames)
            frames = []


def _frames(container, stream) -> Iterator[av.VideoFrame]:
    """The frames as they are stored; a file without end may have none."""
    for packet in container.demux(stream):
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield from packet.decode()


def _check_size(width: int, height: int, pixel_aspect: Fraction | None) -> None:
    wide = width * (pixel_aspect or 1)
    if wide * height > MOST_PIXELS:
        raise Unusable(Cause.UNREADABLE, f"it claims frames of {round(wide)}x{height} pixels, at most {MOST_PIXELS} "
                       "are read")


def _graph(stream, frame: av.VideoFrame, fps: float, size: tuple[int, int] | None) -> av.filter.Graph:
    steps = [("fps", f"{fps:g}"), ("scale", "iw*sar:ih"), ("setsar", "1"), *TURNS[round(frame.rotation / 90) % 4]]
    if size is not None:
        width, height = size
        steps += [("scale", f"{width}:{height}:force_original_aspect_ratio=increase:flags=lanczos"),
                  ("crop", f"{width}:{height}")]
    graph = av.filter.Graph()
    graph.link_nodes(graph.add_buffer(template=stream), *(graph.add(*step) for step in steps),
                     graph.add("buffersink")).configure()
    return graph


def _ready(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    while True:
        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
