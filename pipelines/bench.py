"""`pv3d bench NAME`: figures measured on this machine, now."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.document import did_you_mean

log = logging.getLogger(__name__)

# name -> function that takes keyword arguments and returns {"figures": {name: number}, ...} or the figures
BENCHES = {
    "cameras": "pipelines.benches.cameras:run",
    "chaos": "pipelines.benches.chaos:run",
    "closed_loop": "pipelines.benches.closed_loop:run",
    "cut": "pipelines.benches.cut:run",
    "help": "pipelines.bench:help_time",
    "identity": "pipelines.benches.identity:run",
    "landmarks": "pipelines.benches.landmarks:run",
    "ledger": "pipelines.benches.ledger:run",
    "lists": "pipelines.benches.lists:run",
    "loader": "pipelines.benches.loader:run",
    "long": "pipelines.benches.long:run",
    "memory": "pipelines.benches.memory:run",
    "metrics": "pipelines.benches.metrics:run",
    "model": "model.bench:run",
    "mutants": "pipelines.benches.mutants:run",
    "render": "pipelines.benches.render:run",
    "train": "pipelines.benches.train:run",
    "videos": "pipelines.benches.videos:run",
    "window": "pipelines.benches.window:run",
    "workers": "pipelines.benches.two_workers:run",
}


def run_bench(name: str, data: str | None, options: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Run one bench. Raises ValueError for an unknown name or option."""
    if name not in BENCHES:
        raise ValueError(f"bench {name}: unknown{did_you_mean(name, BENCHES)}")
    module, _, function = BENCHES[name].partition(":")
    measure: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
    known = inspect.signature(measure).parameters
    arguments: dict[str, Any] = _arguments(name, options, list(known))
    if data is not None:
        if not Path(data).is_dir():
            raise ValueError(f"--data {data}: no such folder")
        os.environ["PV3D_WEIGHTS"] = str(Path(data, "weights").absolute())
        if "data" in known:
            arguments["data"] = Path(data).absolute()
    if "progress" in known:
        arguments["progress"] = log.info
    _check(name, arguments, known)
    found = measure(**arguments)
    figures = found.get("figures", found)
    lines = [f"{key:<32} {value:.6g}" for key, value in figures.items()]
    table = {"table": found["table"]} if "table" in found else {}
    text = found.get("table") or "\n".join(lines)
    return {"bench": name, "figures": figures, "machine": machine(), **table}, text


def list_benches() -> tuple[dict[str, Any], str]:
    """What there is, and its options. Nothing is imported for it: a data worker has no PyTorch."""
    found, lines = {}, []
    for name, place in BENCHES.items():
        what, options = _described(*place.split(":"))
        found[name] = {"what": what, "options": options}
        words = [f"--{key} {default or '...'}" for key, default in options.items()]
        lines.append(f"{name:<10} {what}\n           {' '.join(words)}")
    return {"benches": found}, "\n".join(lines)


def _described(module: str, function: str) -> tuple[str, dict[str, str]]:
    """What a bench measures, and its options with their defaults, read from its source."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    text = ast.get_docstring(tree if function == "run" else node) or ""
    what = text.partition("\n")[0].rpartition("`: ")[2]
    given, places = node.args, [*node.args.args, *node.args.kwonlyargs]
    plain: list[ast.expr | None] = [None] * (len(given.args) - len(given.defaults))
    defaults = [*plain, *given.defaults, *given.kw_defaults]
    options = {
        place.arg.replace("_", "-"): _shown(default.value) if isinstance(default, ast.Constant) else ""
        for place, default in zip(places, defaults, strict=True)
        if place.arg != "progress"
    }
    return what[:1].upper() + what[1:], options


def _shown(default: object) -> str:
    return "" if default is None else str(default)


def _check(name: str, arguments: dict[str, Any], known: Mapping[str, inspect.Parameter]) -> None:
    """Raise ValueError for what is missing, or is not the kind of number that the default is."""
    for key, parameter in known.items():
        option, default = "--" + key.replace("_", "-"), parameter.default
        if key not in arguments:
            if default is parameter.empty:
                raise ValueError(f"bench {name}: {option} is missing; give it")
            continue
        kinds: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float)}
        if not isinstance(arguments[key], kinds.get(type(default), (object,))):
            what = "whole number" if isinstance(default, int) else "number"
            raise ValueError(f"bench {name}: {option}: {arguments[key]!r} is no {what}")


def _arguments(name: str, options: Sequence[str], known: list[str]) -> dict[str, Any]:
    """["--kills", "50"] -> {"kills": 50}."""
    arguments: dict[str, Any] = {}
    waiting = list(options)
    while waiting:
        word, equals, value = waiting.pop(0).partition("=")
        key = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or key not in known:
            raise ValueError(f"bench {name}: {word}: unknown option{did_you_mean(key, known)}")
        if not equals:
            if not waiting:
                raise ValueError(f"bench {name}: {word}: give a value")
            value = waiting.pop(0)
        arguments[key] = _number(value)
    return arguments


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found: dict[str, Any] = {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")  # a bench that needs none does not load it for this
    if torch is not None:
        found["torch"] = torch.__version__
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def help_time(runs: int = 5) -> dict[str, Any]:
    """Seconds of a whole `pv3d --help`, the best of some."""
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "--help"]
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begun)
    return {"figures": {"help_s": min(seconds)}}


def peak_gb() -> float:
    """Most memory that this process has held, in GB.

    Where the kernel tells it of the process itself: getrusage also counts what its parent held at the fork.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(found.split()[1]) * 1024 / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
