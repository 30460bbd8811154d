"""How large things may grow in the code that ships: classes, functions, and the floors of the engine."""

import ast
from pathlib import Path

import pytest

MOST_ATTRIBUTES, MOST_LINES, MOST_DECISIONS, LONGEST_LOOP, LONGEST_FAMILY = 12, 200, 10, 180, 59
# Records of data without behaviour: one field for each knob of a node, for each figure that is kept or told, or for each way in
# which transformers differ.
RECORDS = {"HighlightConfig", "SDTMConfig", "Evaluation", "RunRecord", "Report", "Family"}
# What is on a floor of the engine may import from its own and from those above it in this list.
FLOORS = (
    {"config", "trace", "tuning", "time_axis", "extrapolation", "stopwatch", "finite", "profile"},
    {"placement", "prediction", "partial"},
    {"region"},
    {"job", "method", "merging", "report"},
    {"state", "actions", "run", "setup"},
)


def parsed(pack: Path, *folders: str) -> list[tuple[Path, ast.Module]]:
    paths = sorted(path for folder in folders for path in (pack / folder).rglob("*.py"))
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def attributes(node: ast.ClassDef) -> set[str]:
    """The fields of a class, and what its methods set on themselves."""
    fields = {own.target.id for own in node.body if isinstance(own, ast.AnnAssign) and isinstance(own.target, ast.Name)}
    stored = (own for own in ast.walk(node) if isinstance(own, ast.Attribute) and isinstance(own.ctx, ast.Store))
    return fields | {own.attr for own in stored if isinstance(own.value, ast.Name) and own.value.id == "self"}


def decisions(function: ast.FunctionDef) -> int:
    """Branches and loops of a function, further terms of its conditions, and filters of its comprehensions."""
    count = 0
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.For | ast.ExceptHandler):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += len(node.ifs)
    return count


def too_large(tree: ast.Module) -> list[str]:
    """Which classes and functions of a module are over the limits."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name not in RECORDS and len(attributes(node)) > MOST_ATTRIBUTES:
            found.append(f"{node.name} has {len(attributes(node))} attributes")
        if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno >= MOST_LINES:
            found.append(f"{node.name} has {node.end_lineno - node.lineno + 1} lines")
        if isinstance(node, ast.FunctionDef) and decisions(node) > MOST_DECISIONS:
            found.append(f"{node.name} has {decisions(node)} decisions")
    return found


def test_the_check_itself_sees_what_it_is_for():
    many = "\n".join(f"        self.a{i} = {i}" for i in range(13))
    branches = "\n".join("    if x and x: pass" for _ in range(6))
    source = f"class Large:\n    def __init__(self):\n{many}\n\ndef twisted(x):\n{branches}\n"
    assert too_large(ast.parse(source)) == ["Large has 13 attributes", "twisted has 12 decisions"]


def test_no_class_and_no_function_is_too_large_to_read(pack):
    found = {str(path.relative_to(pack)): too_large(tree) for path, tree in parsed(pack, "engine", "host", "nodes")}
    assert not {path: what for path, what in found.items() if what}


def test_one_evaluation_can_be_read_from_top_to_bottom(pack):
    assert len((pack / "engine" / "run.py").read_text().splitlines()) <= LONGEST_LOOP


def test_a_family_of_transformers_says_what_differs_and_no_more(pack):
    """All but what a family is, and the list of them."""
    files = [path for path in (pack / "host" / "families").glob("*.py") if path.name not in ("base.py", "__init__.py")]
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) >= 26 and not {name: lines for name, lines in lengths.items() if lines > LONGEST_FAMILY}


def test_every_module_of_the_engine_is_on_a_floor(pack):
    rooms = {path.relative_to(pack / "engine").parts[0].removesuffix(".py") for path, _ in parsed(pack, "engine")}
    assert rooms - {"__init__"} == set().union(*FLOORS)


@pytest.mark.parametrize("height", range(len(FLOORS)))
def test_floors_of_the_engine_import_from_below(pack, height):
    below = set().union(*FLOORS[: height + 1])
    for path, tree in parsed(pack, "engine"):
        inside = path.relative_to(pack / "engine").parts
        if inside[0].removesuffix(".py") not in FLOORS[height]:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == len(inside) and node.module:
                room = node.module.split(".")[0]
                assert room in below, f"{path.relative_to(pack)} imports {room}, which is on a higher floor"
