"""What users read: a help page for every node in both languages, and translations that fit the schemas."""
import json

import pytest

import pack
from support.environment import PACK

LANGUAGES = ("en", "zh")


def words(language):
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def schemas():
    return {name: node.GET_SCHEMA() for name, node in pack.node_classes().items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_input_and_output_has_words(language):
    found = words(language)
    assert found.keys() == schemas().keys()
    for name, schema in schemas().items():
        node = found[name]
        assert node["display_name"] and node["description"]
        assert node["inputs"].keys() == {each.id for each in schema.inputs}
        assert node["outputs"].keys() == {str(index) for index in range(len(schema.outputs))}
        for each in (*node["inputs"].values(), *node["outputs"].values()):
            assert each["name"].strip() and each["tooltip"].strip()


def test_english_is_the_schemas():
    for name, schema in schemas().items():
        node = words("en")[name]
        assert (node["display_name"], node["description"]) == (schema.display_name, schema.description)
        assert {each.id: each.tooltip for each in schema.inputs} == {
            key: value["tooltip"] for key, value in node["inputs"].items()}
        assert [each.tooltip for each in schema.outputs] == [each["tooltip"] for each in node["outputs"].values()]


def test_chinese_is_chinese():
    for node in words("zh").values():
        for each in (*node["inputs"].values(), *node["outputs"].values()):
            assert any("\u4e00" <= letter <= "\u9fff" for letter in each["tooltip"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page(language):
    """ComfyUI serves docs/<node>/<language>.md of a pack's web folder, and docs/<node>.md for English."""
    docs = PACK / "web" / "docs"
    for name, schema in schemas().items():
        page = docs / (f"{name}.md" if language == "en" else f"{name}/{language}.md")
        text = page.read_text(encoding="utf-8")
        named = [*(each.id for each in schema.inputs), *(each.display_name for each in schema.outputs)]
        assert [name for name in named if name and f"`{name}`" not in text] == []


def test_comfyui_serves_them(server):
    translations = server.get("/i18n")
    assert translations["zh"]["nodeDefs"]["LoadStandIn"]["display_name"] == words("zh")["LoadStandIn"]["display_name"]
    for page in ("LoadStandIn.md", "LoadStandIn/zh.md"):
        assert server.text(f"/extensions/ComfyUI-StandIn/docs/{page}").strip()
