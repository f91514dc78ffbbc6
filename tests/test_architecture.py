"""The house rules that a reader can check: imports point down, pickles stay out, nothing reaches for the network."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import REPOSITORY

# Floors of the house; a module may import its own floor and those below.
FLOORS = [
    {"files"},
    {"model"},
    {"data", "vectors", "patches", "weights", "evaluation"},
    {"methods"},
    {"training"},
    {"hub"},
    {"apps"},
    {"commands"},
    {"cli"},
    {"", "__main__"},  # the package as its users see it
    {"scripts"},
]
# These travel to the Hub with the weights, as one flat folder.
TRAVELLING = {path.stem for path in (REPOSITORY / "cagnet_hf" / "model").glob("*_cagnet.py")}
TRAVELLING_MAY_IMPORT = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", *sys.stdlib_module_names}
MAY_LOAD_CHECKPOINTS = {"weights"}
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}

FILES = sorted([*(REPOSITORY / "cagnet_hf").rglob("*.py"), *(REPOSITORY / "scripts").rglob("*.py")])
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports: modules, and names in modules."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


MODULES = {module_name(path): path for path in FILES}


def own_modules(path: Path) -> set[str]:
    """The modules of this project that a file imports."""
    found = set()
    for name in imported_modules(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", module_name(path)}


def room(module: str) -> str:
    """`cagnet_hf.data.scenes` -> `data`; `cagnet_hf` -> the empty name; `scripts.train` -> `scripts`."""
    top, *rest = module.split(".")
    return "scripts" if top == "scripts" else (rest[0] if rest else "")


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def keywords(call: ast.Call) -> dict[str, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} <= set().union(*FLOORS)


@every_file
def test_imports_point_down(path):
    module = module_name(path)
    upward = {name for name in own_modules(path) if floor(name) > floor(module)}
    assert not upward


def test_no_module_imports_itself_in_a_circle():
    TopologicalSorter({module: own_modules(path) for module, path in MODULES.items()}).prepare()


def test_no_room_imports_itself_in_a_circle():
    rooms: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        rooms.setdefault(room(module), set()).update(map(room, own_modules(path)))
    TopologicalSorter({name: used - {name} for name, used in rooms.items()}).prepare()


def test_the_package_has_few_rooms():
    rooms = {room(module) for module in MODULES} - {"", "__main__", "scripts"}
    assert len(rooms) <= 14


@pytest.mark.parametrize("name", sorted(TRAVELLING))
def test_travelling_files_import_only_each_other_and_what_everyone_has(name):
    path = REPOSITORY / "cagnet_hf" / "model" / f"{name}.py"
    for imported in imported_modules(path):
        if imported.startswith("cagnet_hf."):
            assert imported.split(".")[2] in TRAVELLING
        else:
            assert imported.partition(".")[0] in TRAVELLING_MAY_IMPORT


@pytest.mark.parametrize("name", sorted(TRAVELLING))
def test_travelling_files_import_each_other_by_name(name):
    """`from .x import y`, which the Hub's loader follows; it follows nothing else."""
    tree = ast.parse((REPOSITORY / "cagnet_hf" / "model" / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert (node.level, node.module in TRAVELLING) == (1, True)


@every_file
def test_checkpoints_are_loaded_in_one_place_and_safely(path):
    loads = [call for call in calls(path) if ast.unparse(call.func) == "torch.load"]
    assert all(keywords(call).get("weights_only") == "True" for call in loads)
    assert not loads or room(module_name(path)) in MAY_LOAD_CHECKPOINTS
    assert "torch.load" not in imported_modules(path)  # by its bare name


@every_file
def test_nothing_unpickles(path):
    assert not {name.partition(".")[0] for name in imported_modules(path)} & PICKLERS
    assert not [call for call in calls(path) if keywords(call).get("allow_pickle", "False") != "False"]
    assert not [call for call in calls(path) if ast.unparse(call.func) in ("yaml.load", "yaml.unsafe_load")]


@every_file
def test_nothing_runs_text_as_code_or_a_shell(path):
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
    assert not {ast.unparse(call.func) for call in calls(path)} & forbidden
    assert not [call for call in calls(path) if "shell" in keywords(call)]


NETWORK = {"aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "telnetlib", "urllib", "urllib3"}
# The addresses of images that a user asks to predict; the page's own host names, by which nothing is fetched.
MAY_FETCH = {"data.image_inputs", "apps.demo"}
# git, to write down the commit; the scripts that the benchmark times.
MAY_START_PROGRAMS = {"training.record", "scripts.speed.lines"}


@every_file
def test_the_network_is_left_to_the_libraries_of_the_hub(path):
    module = module_name(path).removeprefix("cagnet_hf.")
    assert not {name.partition(".")[0] for name in imported_modules(path)} & NETWORK or module in MAY_FETCH


@every_file
def test_no_other_program_is_started(path):
    starters = {"subprocess", "multiprocessing", "pty"}
    module = module_name(path).removeprefix("cagnet_hf.")
    assert not {name.partition(".")[0] for name in imported_modules(path)} & starters or module in MAY_START_PROGRAMS
    started = [ast.unparse(call.func) for call in calls(path)]
    assert not [name for name in started if name.startswith(("os.exec", "os.spawn"))]
    assert "os.fork" not in started or module == "cli"  # which speaks once more below a launcher's traceback


@every_file
def test_the_metric_alone_imports_evaluate(path):
    """A file called evaluate.py beside a script would hide the library."""
    module = module_name(path).removeprefix("cagnet_hf.")
    allowed = {"evaluation.zero_shot_segmentation.zero_shot_segmentation"}
    assert "evaluate" not in {name.partition(".")[0] for name in imported_modules(path)} or module in allowed


@every_file
def test_weights_are_saved_as_safetensors_alone(path):
    """Checkpoints of a run, optimisers included, are Accelerate's."""
    assert not [call for call in calls(path) if ast.unparse(call.func) == "torch.save"]
    assert not [call for call in calls(path) if keywords(call).get("safe_serialization", "True") != "True"]


def test_importing_reaches_for_no_network():
    modules = [module for module in MODULES if module.startswith("cagnet_hf")]
    program = (
        "import importlib, socket\n"
        "def refuse(*arguments, **options):\n"
        "    raise AssertionError('an import reached for the network')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert finished.returncode == 0, finished.stderr
