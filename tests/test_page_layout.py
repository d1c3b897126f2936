"""Where the templates' nodes stand, without a browser."""
import json

import pytest

from support.environment import PACK
from support.page_layout import (
    BETWEEN_COLUMNS,
    GROUP_TITLE,
    HIGHEST,
    PADDING,
    RESULT_WIDTH,
    TITLE,
    WIDEST,
    Box,
    Size,
    arrange,
    by_depth,
)
from support.workflow_graphs import WORKFLOWS

SMALL, TALL = Size(200, 100, 100), Size(200, 100, HIGHEST)


def right(box: Box) -> float:
    return box.left + box.width


def test_a_group_stands_below_where_it_takes_nothing_from_the_column():
    sizes = dict.fromkeys("abc", SMALL)
    layout = arrange([["a"], ["b"], ["c"]], sizes, {("b", "c")}, SMALL)
    a, b, c = layout.groups
    assert b.left == a.left and b.top > a.top + a.height
    assert c.left == right(b) + BETWEEN_COLUMNS and c.top == 0
    assert (layout.nodes["a"].left, layout.nodes["a"].top) == (PADDING, GROUP_TITLE + TITLE)


def test_what_does_not_fit_goes_into_the_next_column():
    layout = arrange([["a"], ["b"]], {"a": SMALL, "b": TALL}, set(), SMALL)
    assert layout.groups[1].left > right(layout.groups[0])


def test_the_note_stands_below_the_first_column_and_is_as_wide():
    layout = arrange([["a"], ["b"]], {"a": SMALL, "b": TALL}, set(), SMALL)
    first = layout.groups[0]
    assert (layout.note.left, layout.note.width) == (first.left, first.width)
    assert layout.note.top >= first.top + first.height + TITLE


def test_a_node_has_room_to_grow():
    layout = arrange([["a", "b"]], {"a": Size(200, 50, 300), "b": SMALL}, set(), SMALL)
    assert layout.nodes["a"].height == 50
    assert layout.nodes["b"].top >= layout.nodes["a"].top + 300 + TITLE


def test_a_column_widens_until_its_values_are_read():
    """And the last for its result."""
    layout = arrange([["a"], ["b"], ["c"]], {"a": SMALL, "b": Size(200, 100, 100, 500), "c": SMALL},
                     {("a", "b"), ("b", "c")}, SMALL)
    assert [layout.nodes[each].width for each in "abc"] == [200, 500, RESULT_WIDTH]


def test_a_column_is_not_wider_than_a_node_allows():
    wide, video = Size(200, 100, 100, 500), Size(200, 100, 100, widest=300)
    layout = arrange([["a"], ["b", "c"], ["d"]], {"a": SMALL, "b": wide, "c": video, "d": SMALL},
                     {("a", "b"), ("b", "d")}, SMALL)
    assert layout.nodes["b"].width == layout.nodes["c"].width == 300


def test_columns_share_the_width_that_there_is():
    endless = Size(200, 100, 100, 2 * WIDEST)
    layout = arrange([["a"], ["b"], ["c"]], {"a": SMALL, "b": endless, "c": endless}, {("a", "b"), ("b", "c")}, SMALL)
    assert layout.nodes["b"].width == layout.nodes["c"].width
    assert WIDEST - 2 < right(layout.nodes["c"]) <= WIDEST


def test_nodes_of_a_subgraph_run_from_left_to_right():
    assert by_depth(["c", "a", "b", "d"], {("a", "b"), ("b", "c"), ("a", "c")}) == [["a", "d"], ["b"], ["c"]]


@pytest.mark.parametrize("name", [workflow.name for workflow in WORKFLOWS])
def test_links_run_from_left_to_right(name):
    """To a column further right, or down the own one; and all nodes within what a screen shows."""
    graph = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    place = {node["id"]: Box(*node["pos"], *node["size"]) for node in graph["nodes"]}
    for _, source, _, target, _, _ in graph["links"]:
        before, after = place[source], place[target]
        assert right(before) <= after.left or (before.left == after.left and before.top < after.top), (source, target)
    assert max(map(right, place.values())) <= WIDEST + 2 * PADDING
    assert max(box.top + box.height for box in place.values()) <= HIGHEST
