"""The pack as ComfyUI loads it: by its loader, from custom_nodes."""
import asyncio
import functools
import sys
from pathlib import Path

import nodes

from support.environment import PACK

COMFYUI = Path(nodes.__file__).parent


@functools.cache
def node_classes():
    """Node id -> class, after ComfyUI's own custom-node loader has loaded this checkout."""
    before = set(nodes.NODE_CLASS_MAPPINGS)
    assert asyncio.run(nodes.load_custom_node(str(PACK), module_parent="custom_nodes"))
    return {key: nodes.NODE_CLASS_MAPPINGS[key] for key in nodes.NODE_CLASS_MAPPINGS.keys() - before}


def module(name):
    """A module of the loaded pack. Its classes are not those of ``import standin_core``: ComfyUI gives packs a name."""
    package = next(iter(node_classes().values())).__module__.partition(".nodes.")[0]
    return sys.modules[f"{package}.{name}"]


def in_order(version: str) -> tuple[int, ...]:
    """ "0.16.3" -> (0, 16, 3), which compares as versions do."""
    return tuple(map(int, version.split(".")))
