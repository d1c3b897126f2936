"""Where the nodes of a workflow stand on ComfyUI's page: groups in columns from left to right, a note under the first.

Everything is in pixels of the graph. A node's position is that of its body; its title lies above.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TITLE = 30  # LiteGraph.NODE_TITLE_HEIGHT
GROUP_TITLE, PADDING = 40, 16
BETWEEN_NODES, BETWEEN_GROUPS, BETWEEN_COLUMNS = 20, 30, 28
# A template opens with its nodes on three quarters of the canvas, so at 1920x1080 these give a scale of 0.66. Below 0.5
# the page draws no words.
WIDEST, HIGHEST = 2160, 1210
RESULT_WIDTH = 440  # of the last column, as far as the others leave it


@dataclass(frozen=True)
class Size:
    """The size of a node's body.

    width: the least that it needs.
    height: of what it shows.
    room: the height to which it may grow.
    readable_width: at which no value is cut.
    widest: above which it needs more height than its room.
    """

    width: float
    height: float
    room: float
    readable_width: float = 0
    widest: float = math.inf


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """The bodies of the nodes by id, the groups in their order, and the body of the note."""

    nodes: dict[str, Box]
    groups: tuple[Box, ...]
    note: Box

    @property
    def fit(self) -> float:
        """How much of the scale of WIDEST and HIGHEST it opens at, 1 at most."""
        boxes = (*self.nodes.values(), self.note)
        return min(1.0, WIDEST / max(box.left + box.width for box in boxes),
                   HIGHEST / max(box.top + box.height for box in boxes))


def arrange(groups: Sequence[Sequence[str]], sizes: Mapping[str, Size], links: set[tuple[str, str]],
            note: Size) -> Layout:
    """A group stands below the one before it where it fits and takes nothing from that column, else in the next column.

    groups: ids of nodes from top to bottom.
    links: (id, id) from a node to one that takes its output.
    """
    columns = _columns(groups, sizes, links, note)
    nodes: dict[str, Box] = {}
    boxes: dict[int, Box] = {}
    left, note_box = 0.0, Box(0, 0, 0, 0)
    nodes_of = [[each for index in column for each in groups[index]] for column in columns]
    widths = [max(sizes[each].width for each in column) for column in nodes_of]
    # the first is as wide as the note was measured
    widths = _widened(widths, [0, *(min(max(sizes[each].readable_width for each in column),
                                        min(sizes[each].widest for each in column)) for column in nodes_of[1:])])
    widths = _widened(widths, [0] * (len(columns) - 1) + [RESULT_WIDTH])
    for column, width in zip(columns, widths):
        top = 0.0
        for index in column:
            inner = top + GROUP_TITLE
            for each in groups[index]:
                nodes[each] = Box(left + PADDING, inner + TITLE, width, sizes[each].height)
                inner += TITLE + sizes[each].room + BETWEEN_NODES
            boxes[index] = Box(left, top, width + 2 * PADDING, inner - BETWEEN_NODES + PADDING - top)
            top += boxes[index].height + BETWEEN_GROUPS
        if 0 in column:
            note_box = Box(left, top + TITLE, width + 2 * PADDING, note.height)
        left += width + 2 * PADDING + BETWEEN_COLUMNS
    return Layout(nodes, tuple(boxes[index] for index in range(len(groups))), note_box)


def _widened(widths: Sequence[float], wished: Sequence[float]) -> list[float]:
    """Columns as wide as they are wished, or each by the same part of what it lacks where WIDEST leaves less."""
    spare = WIDEST - PADDING - sum(widths) - (len(widths) - 1) * (2 * PADDING + BETWEEN_COLUMNS)
    lacking = [max(0, wish - width) for width, wish in zip(widths, wished)]
    part = min(1, max(0, spare) / max(1, sum(lacking)))
    return [width + int(part * lack) for width, lack in zip(widths, lacking)]


def by_depth(ids: Sequence[str], links: set[tuple[str, str]]) -> list[list[str]]:
    """The nodes in columns, each to the right of all that it takes from."""
    depth: dict[str, int] = {}
    while len(depth) < len(ids):
        for each in ids:
            before = [source for source, target in links if target == each and source in ids]
            if each not in depth and all(source in depth for source in before):
                depth[each] = 1 + max((depth[source] for source in before), default=-1)
    return [[each for each in ids if depth[each] == column] for column in range(1 + max(depth.values()))]


def _columns(groups, sizes, links, note: Size) -> list[list[int]]:
    where = {each: index for index, group in enumerate(groups) for each in group}
    feeds = {(where[source], where[target]) for source, target in links}
    columns, below = [[0]], _height(groups[0], sizes) + BETWEEN_GROUPS + TITLE + note.height
    for index, group in enumerate(groups[1:], start=1):
        height = _height(group, sizes)
        if below + BETWEEN_GROUPS + height > HIGHEST or any((other, index) in feeds for other in columns[-1]):
            columns.append([index])
            below = height
        else:
            columns[-1].append(index)
            below += BETWEEN_GROUPS + height
    return columns


def _height(group: Sequence[str], sizes: Mapping[str, Size]) -> float:
    return GROUP_TITLE + sum(TITLE + sizes[each].room + BETWEEN_NODES for each in group) - BETWEEN_NODES + PADDING
