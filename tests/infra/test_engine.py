"""The DeepSpeed pattern on a small GAN: the same numbers on any number of workers, at ZeRO 0, 1 and 2.

Gradients are far above norm 1 and grow, so that clipping would show; a layer of the generator is left out of
its main update; the discriminator's penalty needs two derivatives and has a step of its own.

Run as a script, this file is one worker; the tests start it with the ranks in the environment.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BATCH, STEPS, SAVE_AT = 4, 6, 3


def run_workers(world: int, *tasks: dict[str, Any]) -> str:
    """Run the tasks one after the other on `world` processes, with no compiler on the PATH. Returns what they
    print."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    tools = ("g++", "gcc", "cc", "clang", "ninja")
    path = [
        p for p in os.environ["PATH"].split(os.pathsep) if not any(Path(p, tool).exists() for tool in tools)
    ]
    common = {
        **os.environ, "PATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps(tasks)],
            env={**common, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for r in range(world)
    ]  # fmt: skip
    outputs = [w.communicate(timeout=300)[0] for w in workers]
    assert all(w.returncode == 0 for w in workers), "\n".join(outputs)
    return "".join(outputs)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outcome of every task, after three launches."""
    folder = tmp_path_factory.mktemp("engine")

    def task(name: str, zero: int, **options: Any) -> dict[str, Any]:
        paths = {k: str(folder / v) for k, v in options.items() if k in ("save", "load")}
        return {"out": str(folder / f"{name}.json"), "zero": zero, **options, **paths}

    run_workers(1, task("plain", 0, plain=True), task("half", 0, save="one-0"))
    printed = run_workers(
        2, *(task(f"two-{zero}", zero) for zero in (0, 1, 2)), task("half", 1, save="two-1"),
        task("one-0 to two-1", 1, load="one-0"),
        *(task(f"parts-{zero}", zero, parts=2) for zero in (0, 1, 2)),
        *(task(f"{fault}-{zero}", zero, fault=fault) for fault in ("loss", "gradient") for zero in (0, 1)),
    )  # fmt: skip
    run_workers(1, task("two-1 to one-2", 2, load="two-1"))
    (folder / "printed").write_text(printed)
    return folder


def outcome(results: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    return found


def difference(a: Path, b: Path) -> float:
    left, right = (json.loads(path.read_text())["weights"] for path in (a, b))
    assert left.keys() == right.keys()
    assert left
    return max(abs(x - y) for name in left for x, y in zip(left[name], right[name], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_workers_without_a_compiler_equal_plain_torch(results: Path, zero: int) -> None:
    assert difference(results / "plain.json", results / f"two-{zero}.json") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_workers_that_accumulate_over_two_parts_equal_plain_torch(results: Path, zero: int) -> None:
    assert difference(results / "plain.json", results / f"parts-{zero}.json") < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("run", ["two-0", "two-1", "two-2", "parts-0", "parts-1", "parts-2"])
def test_what_is_told_is_of_all_workers_and_no_gradient_is_clipped(results: Path, run: str) -> None:
    plain, told = (outcome(results, name)["told"] for name in ("plain", run))
    norms = [values["g/grad_norm"] for values in plain if "g/grad_norm" in values]
    assert min(norms) > 1
    assert max(norms) > 2 * min(norms)
    assert len(told) == len(plain)
    for here, there in zip(told, plain, strict=True):
        assert here == pytest.approx(there, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_layer_that_an_update_leaves_out_stays_and_its_moments_fade(results: Path, zero: int) -> None:
    """A stale gradient, or AdamW's decay, would move it; Adam of plain torch would not count the update."""
    found, plain = outcome(results, f"two-{zero}"), outcome(results, "plain")
    assert found["unused_moved"] == [0.0] * STEPS
    assert found["moments"]["g"]["step"] == plain["moments"]["g"]["step"] == [STEPS + STEPS / 2]
    for network in ("g", "d"):
        assert found["moments"][network].keys() == plain["moments"][network].keys()
        for name, value in plain["moments"][network].items():
            assert found["moments"][network][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_the_loss_of_a_network_leaves_no_gradient_in_another(results: Path, zero: int) -> None:
    assert outcome(results, f"two-{zero}")["foreign_gradients"] == []


@pytest.mark.slow
def test_workers_print_nothing(results: Path) -> None:
    assert (results / "printed").read_text().strip() == ""


@pytest.mark.slow
@pytest.mark.parametrize("move", ["two-1 to one-2", "one-0 to two-1"])
def test_adam_state_moves_to_another_number_of_workers_and_stage(results: Path, move: str) -> None:
    assert difference(results / "plain.json", results / f"{move}.json") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize(
    ("fault", "message"), [("loss", "d/real is nan"), ("gradient", "the gradient of d is not finite")]
)
def test_stops_on_every_worker_before_the_update_when_not_finite(
    results: Path, zero: int, fault: str, message: str
) -> None:
    stopped = json.loads((results / f"{fault}-{zero}.json").read_text())
    assert stopped["unchanged"]
    assert stopped["error"] == message


def test_refuses_zero_3_with_the_reason() -> None:
    from infra.engine import check_stage

    with pytest.raises(ValueError, match=r"double backward of the R1 penalty.*choose 0, 1 or 2"):
        check_stage(3)
    with pytest.raises(ValueError, match="7 is no ZeRO stage"):
        check_stage(7)


# --- one worker ---------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """A batch that an update can go over in parts."""

    x: Any

    def part(self, index: int, of: int) -> Rows:
        return Rows(self.x[index::of])


def worker(
    out: str, zero: int, plain: bool = False, save: str = "", load: str = "", fault: str = "", parts: int = 1
) -> None:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file, save_file
    from torch import nn

    from infra.engine import Engine, NonFiniteError, init_deepspeed

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    g = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 64)), "reg": nn.Linear(8, 1)}
    )
    d = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3), nn.Softplus(), nn.Flatten(), nn.Linear(216, 1)
    )
    start = 0
    if load:
        tensors = load_file(load)
        start = SAVE_AT
        g.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("g/")})
        d.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("d/")})

    class Plain:
        """Plain torch; a parameter without a gradient is stepped with zero, as every ZeRO stage does."""

        def __init__(self, network: nn.Module) -> None:
            self.network, self.adam = (
                network,
                torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.0, 0.99)),
            )

        def update(self, loss, *args, label):  # type: ignore[no-untyped-def]
            for p in self.network.parameters():
                p.grad = torch.zeros_like(p)
            terms = loss(self.network, *args)
            sum(terms.values()).backward()
            norm = torch.stack([p.grad.norm() for p in self.network.parameters()]).norm()
            self.adam.step()
            self.network.zero_grad()
            other = d if self.network is g else g
            other.zero_grad()
            told = {**terms, f"{label}/grad_norm": norm}
            return {name: float(term.detach()) for name, term in told.items()}

        def moments(self) -> dict[str, torch.Tensor]:
            state = {n: self.adam.state[p] for n, p in self.network.named_parameters()}
            moments = {
                f"{n}.{name}": held[name] for n, held in state.items() for name in ("exp_avg", "exp_avg_sq")
            }
            return {**moments, "step": next(iter(state.values()))["step"].reshape(1)}

    if plain:
        eng_g, eng_d = Plain(g), Plain(d)
    else:
        init_deepspeed()
        adam = {"videos": BATCH // world, "zero": zero, "parts": parts, "lr": 2e-3}
        adam["betas"] = (0.0, 0.99)
        eng_g, eng_d = Engine("g", g, **adam), Engine("d", d, **adam)
        if load:
            for name, engine in (("adam_g/", eng_g), ("adam_d/", eng_d)):
                engine.load_moments(
                    {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
                )

    told: list[dict[str, float]] = []
    unused_moved: list[float] = []
    foreign: list[str] = []

    def look(now: str) -> None:
        for name, network in (("g", g), ("d", d)):
            for n, p in network.named_parameters():
                if (p.grad is not None and p.grad.any()) or (p.requires_grad and not plain):
                    foreign.append(f"{name}.{n} after {now}")

    for step in range(start, STEPS if not save else SAVE_AT):
        random = torch.Generator().manual_seed(step)
        z, real = (Rows(torch.randn(BATCH, n, generator=random)[rank::world]) for n in (8, 64))

        steep = 100.0 * (step + 1)

        def g_main(network: nn.Module, z: Rows, steep: float = steep):  # type: ignore[no-untyped-def]
            return {"g/main": F.softplus(-d(network["body"](z.x))).mean() * steep}

        def g_reg(network: nn.Module, z: Rows):  # type: ignore[no-untyped-def]
            return {"g/reg": network["reg"](z.x).abs().mean()}

        def d_main(  # type: ignore[no-untyped-def]
            network: nn.Module, z: Rows, real: Rows, step: int = step, steep: float = steep
        ):  # fmt: skip
            with torch.no_grad():
                fake = g["body"](z.x)
            logits = network(real.x)
            if fault == "gradient" and step == 1 and rank == 0:
                logits.register_hook(lambda grad: grad * float("inf"))
            scale = float("nan") if fault == "loss" and step == 1 and rank == 1 else 1.0
            fakes = F.softplus(network(fake)).mean() * steep
            return {"d/fake": fakes, "d/real": F.softplus(-logits).mean() * steep * scale}

        def d_reg(network: nn.Module, real: Rows):  # type: ignore[no-untyped-def]
            x = real.x.clone().requires_grad_(True)
            (grad,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
            return {"d/r1": grad.square().sum(1).mean() * 4}

        before = {k: v.clone() for k, v in d.state_dict().items()}
        try:
            unused = g["reg"].weight.clone()
            told.append(eng_g.update(g_main, z, label="g"))
            unused_moved.append(float((g["reg"].weight - unused).abs().max()))
            look("g/main")
            if step % 2 == 0:
                told.append(eng_g.update(g_reg, z, label="g_reg"))
            told.append(eng_d.update(d_main, z, real, label="d"))
            look("d/main")
            if step % 3 == 0:
                told.append(eng_d.update(d_reg, real, label="d_reg"))
        except NonFiniteError as error:
            unchanged = all(torch.equal(before[k], v) for k, v in d.state_dict().items())
            if rank == 1:
                Path(out).write_text(json.dumps({"error": str(error), "unchanged": unchanged}))
            return

    moments = {"g": eng_g.moments(), "d": eng_d.moments()}
    if save and rank == 0:
        state = {f"{n}/{k}": v.clone() for n, m in (("g", g), ("d", d)) for k, v in m.state_dict().items()}
        adam_state = {f"adam_{n}/{k}": v for n, m in moments.items() for k, v in m.items()}
        save_file({**state, **adam_state}, save)
    if rank == 0:
        tensors = {
            f"{n}.{k}": v.flatten().tolist()
            for n, m in (("g", g), ("d", d))
            for k, v in m.state_dict().items()
        }
        Path(out).write_text(json.dumps({
            "weights": tensors, "told": told, "unused_moved": unused_moved, "foreign_gradients": foreign,
            "moments": {n: {k: v.flatten().tolist() for k, v in m.items()} for n, m in moments.items()},
        }))  # fmt: skip


if __name__ == "__main__":
    for given in json.loads(sys.argv[1]):
        worker(**given)
    from infra.engine import end_deepspeed

    end_deepspeed()
    left = [Path(thread, "comm").read_text().strip() for thread in Path("/proc/self/task").glob("*")]
    assert not [name for name in left if "gloo" in name], left
