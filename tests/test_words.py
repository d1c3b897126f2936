"""What users read: a help page for every node in both languages, and translations that fit the schemas."""
import ast
import functools
import json
import math
import re
import tomllib

import pytest
from comfy_api.latest import io

from support import pack
from support.browser import PACK_NAME
from support.environment import PACK
from support.workflow_graphs import WORKFLOWS

LANGUAGES = ("en", "zh")
MENDING = {"en": "## When something goes wrong", "zh": "## 出错时"}
ANYTHING = "…"  # stands for what an f-string fills in, and for what a help page leaves out


def words(language):
    return json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def help_page(name, language):
    """ComfyUI serves docs/<node>/<language>.md of a pack's web folder, and docs/<node>.md for English."""
    page = f"{name}.md" if language == "en" else f"{name}/{language}.md"
    return (PACK / "web" / "docs" / page).read_text(encoding="utf-8")


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


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_category_has_words(language):
    main = json.loads((PACK / "locales" / language / "main.json").read_text(encoding="utf-8"))
    assert main["nodeCategories"].keys() == {part for schema in schemas().values()
                                             for part in schema.category.split("/")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_template_browser_names_the_pack(language):
    """Whatever its folder is called: as the registry installs it, and as the README clones it."""
    registry = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    main = json.loads((PACK / "locales" / language / "main.json").read_text(encoding="utf-8"))
    assert main["templateWorkflows"]["category"] == {registry: "Stand-In", PACK_NAME: "Stand-In"}
    readme = (PACK / "README.md").read_text(encoding="utf-8")
    assert f"into `custom_nodes/{registry}`" in readme and f"in\n`custom_nodes/{PACK_NAME}`" in readme
    assert f"git clone <this repository> {PACK_NAME}\n" in readme


@pytest.mark.parametrize("readme", ("README.md", "README_zh.md"))
def test_the_readmes_name_every_template_and_node(readme):
    """The templates in the order in which the page shows them."""
    text = (PACK / readme).read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+)\]\(workflows/\1\.json\)", text, re.MULTILINE)
    assert listed == [workflow.name for workflow in WORKFLOWS]
    language = "zh" if "_zh" in readme else "en"
    named = {node["display_name"] for node in words(language).values()}
    assert {name for name in named if f"**{name}**" not in text} == set()


def test_chinese_is_chinese():
    for node in words("zh").values():
        tooltips = [each["tooltip"] for each in (*node["inputs"].values(), *node["outputs"].values())]
        assert all(map(is_chinese, (node["display_name"], node["description"], *tooltips)))


def is_chinese(text):
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


# numbers that count what there is, or only name something
NOT_TURNED = ("seed", "seeds", "people", "frames_per_video", "trim_latent")


@pytest.mark.parametrize(("language", "turned"), [("en", "[Hh]igher|[Ll]ower"), ("zh", "调高|调低|越大")])
def test_a_number_says_what_turning_it_does(language, turned):
    numbers = [(name, each.id) for name, schema in schemas().items() for each in schema.inputs
               if isinstance(each, io.Int.Input | io.Float.Input) and each.id not in NOT_TURNED]
    assert [(name, number) for name, number in numbers
            if not re.search(turned, words(language)[name]["inputs"][number]["tooltip"])] == []


# ComfyUI shows its own samplers and schedulers by one name in every language
NAMES_OF_COMFYUI = ("sampler_name", "scheduler")
# names of networks, methods and types, however they are written
NAMES = ("retinaface", "insightface", "yunet", "arcface", "sface", "bisenet", "imagenet", "stand-in", "concat-id",
         "id-animator", "adaln", "0.5", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")


def choices():
    """(node, input) -> choice -> what the page shows of it in Chinese, of every list of choices that is the pack's."""
    found = {}
    for name, schema in schemas().items():
        for each in schema.inputs:
            # a list of files is a type of its own
            if type(each) is io.Combo.Input and each.options and each.id not in NAMES_OF_COMFYUI:
                shown = words("zh")[name]["inputs"][each.id].get("options", {})
                assert list(shown) == list(each.options), (name, each.id)
                found[name, each.id] = shown
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_preset_says_what_was_measured(language):
    """In its tooltip and on the help page; another training of the small world changes it."""
    record = json.loads((PACK / "benchmarks" / "results" / "small_world_cpu.json").read_text(encoding="utf-8"))
    found = [f"{record[name]['kept']:.2f}" for name in ("with the branch", "positive pass")]
    tooltip = words(language)["ApplyIdentityBranch"]["inputs"]["preset"]["tooltip"]
    (row,) = [line for line in help_page("ApplyIdentityBranch", language).splitlines() if line.startswith("| `preset`")]
    for text in (tooltip, row):
        assert re.findall(r"0\.\d+", text) == found
        assert str(record["people"]) in text


def test_every_choice_has_a_chinese_word():
    """One for each, so that two choices of a list are told apart."""
    for shown in choices().values():
        assert len(set(shown.values())) == len(shown)
        for choice, word in shown.items():
            assert is_chinese(word) or choice.lower() == word.lower() in NAMES, (choice, word)


def test_chinese_words_of_choices_are_those_of_the_page():
    """A tooltip names a choice as the page does; a help page also as errors, reports and workflows do."""
    for (node, name), shown in choices().items():
        tooltip = words("zh")[node]["inputs"][name]["tooltip"]
        (row,) = [line for line in help_page(node, "zh").splitlines() if line.startswith(f"| `{name}`")]
        for choice, word in shown.items():
            if choice.lower() != word.lower():
                assert f"{choice} " not in tooltip and f"{choice}：" not in tooltip
                assert word in row or f"*{choice}*" not in row, (node, name, choice)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page(language):
    for name, schema in schemas().items():
        text = help_page(name, language)
        named = [*(each.id for each in schema.inputs), *(each.display_name for each in schema.outputs)]
        assert [name for name in named if name and f"`{name}`" not in text] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", sorted(pack.node_classes()))
def test_quoted_errors_are_the_codes(name, language):
    _, mending = help_page(name, language).split(MENDING[language])
    quotes = re.findall(r'"([^"]+)"', mending)
    assert quotes
    assert [quote for quote in quotes if not is_said(parts_of(quote))] == []


@functools.cache
def sentences():
    """Every string of the code in parts; docstrings are left out."""
    found = set()
    for folder in ("standin_core", "nodes"):
        for path in (PACK / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    found.add(parts_of("".join(
                        part.value if isinstance(part, ast.Constant) else ANYTHING for part in node.values)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                    found.add(parts_of(node.value))
    return found


def parts_of(text):
    """The words, the numbers and ANYTHING, without the signs between them."""
    return tuple(re.findall(rf"[^\W\d_]+|\d+|{ANYTHING}", text.replace("...", ANYTHING)))


def is_said(quote):
    """Whether the quote is a piece of a sentence that gives more than half of its words."""
    half = sum(part != ANYTHING for part in quote) / 2
    return any(own_words(quote, sentence[start:]) > half
               for sentence in sentences() if sum(part in sentence for part in quote) > half  # it is faster
               for start in range(len(sentence)))


@functools.cache
def own_words(quote, sentence):
    """How many words of the quote the sentence gives itself, if it begins with the quote; else -inf.

    What is filled in is a number, a string of one word (the name of a choice), or left out in the quote.
    """
    if not quote or not sentence:
        return -math.inf if quote else 0
    if sentence[0] == ANYTHING:
        filled_in = quote[0] == ANYTHING or quote[0].isdigit() or quote[:1] in sentences()
        return max(own_words(quote, sentence[1:]), own_words(quote[1:], sentence) if filled_in else -math.inf)
    return 1 + own_words(quote[1:], sentence[1:]) if quote[0] == sentence[0] else -math.inf


def test_comfyui_serves_them(server):
    translations = server.get("/i18n")
    assert translations["zh"]["nodeDefs"]["LoadStandIn"]["display_name"] == words("zh")["LoadStandIn"]["display_name"]
    for page in ("LoadStandIn.md", "LoadStandIn/zh.md"):
        assert server.text(f"/extensions/ComfyUI-StandIn/docs/{page}").strip()
