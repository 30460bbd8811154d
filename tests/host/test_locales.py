"""Every text of every node, in every language."""

import re

import pytest
from highlight_diffusion.tools import locales

SYNTAX = re.compile(r"[{}@|]")  # has a meaning to vue-i18n, which the frontend reads these with


def test_english_is_what_the_nodes_say():
    assert locales.read("en") == locales.of_nodes(), "run `python run.py locales`"


def test_the_page_of_the_nodes_is_what_the_nodes_say():
    assert locales.NODES_PAGE.read_text(encoding="utf-8") == locales.nodes_page(), "run `python run.py locales`"


@pytest.mark.parametrize("language", locales.languages())
def test_every_language_is_complete(language, pack):
    english, texts = locales.of_nodes(), locales.read(language)
    assert sorted(locales.paths(texts)) == sorted(locales.paths(english)), "run `python run.py locales`"
    for path in locales.paths(texts):
        value = texts
        for name in path.split("."):
            value = value[name]
        assert value and value.strip() and not SYNTAX.search(value), path


def test_every_node_has_a_help_page_in_every_language(pack):
    for name in locales.of_nodes():
        assert (pack / "js" / "docs" / f"{name}.md").is_file(), name
        for language in set(locales.languages()) - {"en"}:
            assert (pack / "js" / "docs" / name / f"{language}.md").is_file(), f"{name}, {language}"


def test_help_pages_explain_every_input(pack):
    for name, texts in locales.of_nodes().items():
        for page in (pack / "js" / "docs" / f"{name}.md", *sorted((pack / "js" / "docs" / name).glob("*.md"))):
            rows = re.findall(r"^\| ([\w,、 /]+?) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
            explained = {own for row in rows for own in re.split(r", |、| / ", row)}
            assert set(texts["inputs"]) <= explained, f"{page}: {sorted(set(texts['inputs']) - explained)}"
