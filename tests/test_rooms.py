"""The arrow benchmarks -> agents -> kairos_env -> world_model -> kernels, and no flat imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "world_model", "kairos_env", "agents", "benchmarks")  # later may import earlier
LINKED = frozenset(ROOMS) - {"kairos_env"}


def room_of(module: str) -> str | None:
    first, *rest = module.split(".")
    if first != "kairos_env":
        return None
    return rest[0] if rest and rest[0] in LINKED else "kairos_env"


def imports_of(tree: ast.Module):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno


def breaches(source: str, room: str):
    """What is wrong with a file's imports: (line, why)."""
    for module, line in imports_of(ast.parse(source)):
        target = room_of(module)
        if module.startswith("."):
            yield line, f"relative import of {module}; write kairos_env.{room}..."
        elif module.split(".")[0] in LINKED:
            yield line, f"flat import of {module}; write kairos_env.{module}"
        elif target is not None and ROOMS.index(target) > ROOMS.index(room):
            yield line, f"{room} imports {module}: that runs against the arrow"


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_runs_back(room):
    files = [path for path in sorted((ROOT / room).rglob("*.py")) if not in_a_link(path)]
    assert files, f"no files in {room}"
    found = [
        f"{path.relative_to(ROOT)}:{line}: {why}"
        for path in files
        for line, why in breaches(path.read_text("utf-8"), room)
    ]
    assert not found, "\n".join(found)


def in_a_link(path: Path) -> bool:
    return path.resolve() != path


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import kernels", "flat"),
        ("from world_model.state import DreamState", "flat"),
        ("from kairos_env.agents.collect import collect", "arrow"),
        ("def f():\n    import kairos_env.benchmarks.kernels", "arrow"),
        ("from . import state", "relative"),
    ],
)
def test_breaches_are_seen(source, told):
    [(_, why)] = breaches(source, "kairos_env")
    assert told in why


def test_rooms_with_borrowed_names_shadow_nobody():
    """Without an __init__.py, an installed package of the same name is preferred."""
    for room in LINKED:
        assert not (ROOT / room / "__init__.py").exists()
        assert (ROOT / "kairos_env" / room).is_symlink()
