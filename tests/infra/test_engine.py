"""The DeepSpeed pattern on a small GAN: the same numbers on any number of workers, at ZeRO 0, 1 and 2.

Run as a script, this file is one worker; the tests start it with the ranks in the environment.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

BATCH, STEPS, SAVE_AT = 4, 6, 3


def run_workers(out: Path, world: int, zero: int, *options: str, check: bool = True) -> list[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = os.environ["PATH"].split(os.pathsep)
    bare = os.pathsep.join(p for p in path if not any(Path(p, tool).exists() for tool in ("g++", "gcc", "cc", "ninja")))
    common = {
        **os.environ, "PATH": bare, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world), "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    command = [sys.executable, __file__, str(out), str(zero), *options]
    workers = [
        subprocess.Popen(
            command, env={**common, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for r in range(world)
    ]  # fmt: skip
    outputs = [w.communicate(timeout=120)[0] for w in workers]
    if check:
        assert all(w.returncode == 0 for w in workers), "\n".join(outputs)
    return outputs


def weights(out: Path) -> dict[str, list[float]]:
    return json.loads(out.read_text())["weights"]


def difference(a: Path, b: Path) -> float:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert left
    return max(abs(x - y) for name in left for x, y in zip(left[name], right[name], strict=True))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "plain.json"
    run_workers(out, 1, 0, "--plain")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_workers_equal_plain_torch_without_a_compiler(reference: Path, tmp_path: Path, zero: int) -> None:
    outputs = run_workers(tmp_path / "two.json", 2, zero)
    assert difference(reference, tmp_path / "two.json") < 1e-6
    assert not "".join(outputs).strip(), "a worker must not print"


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [((2, 1), (1, 2)), ((1, 0), (2, 1))])
def test_adam_state_moves_to_another_number_of_workers_and_stage(
    reference: Path, tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    state = tmp_path / "state.safetensors"
    run_workers(tmp_path / "half.json", *before, "--save", str(state))
    run_workers(tmp_path / "resumed.json", *after, "--load", str(state))
    assert difference(reference, tmp_path / "resumed.json") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_stops_on_every_worker_before_the_update_when_not_finite(tmp_path: Path, zero: int, fault: str) -> None:
    out = tmp_path / "stopped.json"
    run_workers(out, 2, zero, "--fault", fault)
    stopped = json.loads(out.read_text())
    assert stopped["unchanged"]
    assert ("d/real is nan" if fault == "loss" else "the gradient of d is not finite") in stopped["error"]


def test_refuses_zero_3_with_the_reason() -> None:
    from infra.engine import check_stage

    with pytest.raises(ValueError, match="double backward of the R1 penalty.*choose 0, 1 or 2"):
        check_stage(3)
    with pytest.raises(ValueError, match="7 is no ZeRO stage"):
        check_stage(7)


# --- one worker ---------------------------------------------------------------------------------------------


def worker(out: str, zero: int, plain: bool, save: str, load: str, fault: str) -> None:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file, save_file
    from torch import nn

    from infra.engine import Engine, NonFiniteError, init_deepspeed

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(0)
    g = nn.ModuleDict({"body": nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 64)), "reg": nn.Linear(8, 1)})
    d = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3), nn.Softplus(), nn.Flatten(), nn.Linear(216, 1))
    start = 0
    if load:
        tensors = load_file(load)
        start = SAVE_AT
        g.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("g/")})
        d.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("d/")})

    class Plain:
        """Plain torch; a parameter without a gradient is stepped with zero, as every ZeRO stage does."""

        def __init__(self, network: nn.Module) -> None:
            self.network, self.adam = network, torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.0, 0.99))

        def update(self, loss):  # type: ignore[no-untyped-def]
            for p in self.network.parameters():
                p.grad = torch.zeros_like(p)
            sum(loss(self.network).values()).backward()
            self.adam.step()

    if plain:
        eng_g, eng_d = Plain(g), Plain(d)
    else:
        init_deepspeed()
        adam = {"videos": BATCH // world, "zero": zero, "lr": 2e-3, "betas": (0.0, 0.99)}
        eng_g, eng_d = Engine("g", g, **adam), Engine("d", d, **adam)
        if load:
            for name, engine in (("adam_g/", eng_g), ("adam_d/", eng_d)):
                engine.load_moments({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})

    for step in range(start, STEPS if not save else SAVE_AT):
        random = torch.Generator().manual_seed(step)
        z, real = torch.randn(BATCH, 8, generator=random)[rank::world], torch.randn(BATCH, 64, generator=random)[rank::world]

        def g_main(network: nn.Module, z: torch.Tensor = z):  # type: ignore[no-untyped-def]
            return {"g/main": F.softplus(-d(network["body"](z))).mean()}

        def g_reg(network: nn.Module, z: torch.Tensor = z):  # type: ignore[no-untyped-def]
            return {"g/reg": network["reg"](z).abs().mean()}

        def d_main(network: nn.Module, z: torch.Tensor = z, real: torch.Tensor = real):  # type: ignore[no-untyped-def]
            with torch.no_grad():
                fake = g["body"](z)
            logits = network(real)
            if fault == "gradient" and step == 1 and rank == 0:
                logits.register_hook(lambda grad: grad * float("inf"))
            scale = float("nan") if fault == "loss" and step == 1 and rank == 1 else 1.0
            return {"d/fake": F.softplus(network(fake)).mean(), "d/real": F.softplus(-logits).mean() * scale}

        def d_reg(network: nn.Module, real: torch.Tensor = real):  # type: ignore[no-untyped-def]
            x = real.clone().requires_grad_(True)
            (grad,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
            return {"d/r1": grad.square().sum(1).mean() * 4}

        before = {k: v.clone() for k, v in d.state_dict().items()}
        try:
            eng_g.update(g_main)
            if step % 2 == 0:
                eng_g.update(g_reg)
            eng_d.update(d_main)
            if step % 3 == 0:
                eng_d.update(d_reg)
        except NonFiniteError as error:
            unchanged = all(torch.equal(before[k], v) for k, v in d.state_dict().items())
            if rank == 1:
                Path(out).write_text(json.dumps({"error": str(error), "unchanged": unchanged}))
            return

    if save:
        moments = {f"adam_{n}/{k}": v for n, e in (("g", eng_g), ("d", eng_d)) for k, v in e.moments().items()}
        if rank == 0:
            state = {f"{n}/{k}": v for n, m in (("g", g), ("d", d)) for k, v in m.state_dict().items()}
            save_file({**{k: v.clone() for k, v in state.items()}, **moments}, save)
    if rank == 0:
        tensors = {f"{n}.{k}": v.flatten().tolist() for n, m in (("g", g), ("d", d)) for k, v in m.state_dict().items()}
        Path(out).write_text(json.dumps({"weights": tensors}))
    if not plain:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("zero", type=int)
    parser.add_argument("--plain", action="store_true")
    for option in ("save", "load", "fault"):
        parser.add_argument(f"--{option}", default="")
    worker(**vars(parser.parse_args()))
