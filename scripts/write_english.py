"""Write locales/en/nodeDefs.json from the schemas of the nodes; the other languages are written by hand.

    .standin/venv/bin/python scripts/write_english.py
"""
import json

from support.environment import PACK, import_comfyui

import_comfyui("--cpu")

from support import pack


def words_of(schema) -> dict:
    def entry(name: str, tooltip: str) -> dict:
        return {"name": name.replace("_", " "), "tooltip": tooltip}

    return {"display_name": schema.display_name, "description": schema.description,
            "inputs": {each.id: entry(each.id, each.tooltip) for each in schema.inputs},
            "outputs": {str(index): entry(each.display_name or each.id or each.io_type.lower(), each.tooltip)
                        for index, each in enumerate(schema.outputs)}}


if __name__ == "__main__":
    words = {name: words_of(node.GET_SCHEMA()) for name, node in sorted(pack.node_classes().items())}
    path = PACK / "locales" / "en" / "nodeDefs.json"
    path.write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
