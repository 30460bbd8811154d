"""The pages: every link leads somewhere, every command exists, and what is written twice is the same."""

import ast
import re
import subprocess
import sys

import pytest
from highlight_diffusion.bench import page

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python run\.py ([a-z][a-z-]*)")
LONGEST_README, LONGEST_SUMMARY = 130, 150  # lines


@pytest.fixture
def pages(pack):
    """Every page of the repository that is written for people, with its text."""
    found = [pack / "README.md", pack / "CONTRIBUTING.md", *sorted((pack / "docs").rglob("*.md"))]
    return {path: path.read_text(encoding="utf-8") for path in found}


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere(pages):
    for path, text in pages.items():
        for target in LINK.findall(text):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            page = (path.parent / name).resolve() if name else path
            assert page.exists(), f"{path.name} links to {target}, which is not there"
            assert not anchor or anchor in anchors(pages[page]), f"{path.name} links to {target}, which is no heading there"


def test_every_command_exists(pages, pack):
    told = subprocess.run([sys.executable, pack / "run.py", "--help"], check=True, capture_output=True, text=True).stdout
    known = set(re.findall(r"^  ([a-z]+) ", told.partition("commands:")[2], re.MULTILINE))
    for path, text in pages.items():
        named = set(COMMAND.findall(text))
        assert named <= known, f"{path.name} names {sorted(named - known)}, which run.py does not have"


def test_the_readme_is_short_and_names_commands_only_for_a_checkout(pages, pack):
    text = pages[pack / "README.md"]
    installed, _, checkout = text.partition("## From a git checkout")
    assert len(text.splitlines()) <= LONGEST_README
    assert "run.py" not in installed and set(COMMAND.findall(checkout)) == {"demo", "test"}


def rows(text: str) -> list[list[str]]:
    """The cells of every table row of a page."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_readme_names_every_node(pages, pack):
    nodes = re.findall(r"^## (.*)$", pages[pack / "docs" / "nodes.md"], re.MULTILINE)
    assert set(re.findall(r"^\| \*\*(.+?)\*\* \|", pages[pack / "README.md"], re.MULTILINE)) == set(nodes)


def test_the_results_in_the_readme_are_those_of_the_pages(pages, pack):
    results = pages[pack / "README.md"].partition("## Results")[2].partition("## ")[0]
    figures = [cell for row in rows(results) for cell in row if re.match(r"\d+\.\d+x: ", cell)]
    told = {cell for row in rows(pages[pack / "docs" / "benchmarks.md"]) for cell in row}
    assert figures and set(figures) <= told


def test_the_page_of_the_bench_is_what_its_results_say(pages, pack):
    """And short enough to be read: `python run.py page` writes it."""
    path = pack / "docs" / "benchmarks.md"
    assert pages[path] == page.text(pack / "docs" / "benchmarks", path)
    assert len(pages[path].splitlines()) <= LONGEST_SUMMARY


def test_the_fields_of_a_family_are_explained(pages, pack):
    tree = ast.parse((pack / "host" / "families" / "base.py").read_text())
    (family,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Family")
    fields = [node.target.id for node in family.body if isinstance(node, ast.AnnAssign)]
    table = pages[pack / "docs" / "models.md"].partition("| field of `Family` |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(fields)
