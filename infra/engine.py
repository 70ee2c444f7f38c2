"""One network, its Adam and DeepSpeed, in the pattern that gives the same result on any number of workers.

Several natural ways to train a GAN with DeepSpeed engines are silently wrong. What this file makes sure of:

- The whole loss of a network, gradient penalties included, is computed inside the wrapped module's `forward`,
  which returns one scalar: an autograd walk through an engine's *output* (a penalty, another network's loss)
  would start its gradient reduction at the wrong time.
- One backward per optimiser step. Under ZeRO 1 and 2 a second backward replaces the gradients of the first.
- Outside of its own update a network is frozen and used as a plain module: no other loss leaves gradients.
- ZeRO 3 is refused: it releases the weights that a gradient penalty needs twice, and re-applies stale
  gradients to parameters that a phase does not use.
- DeepSpeed's default gradient clipping (norm 1) is switched off.
- Adam is torch's own and the shared-memory operator is off, so that no compiler is needed anywhere.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Values = dict[str, float]
Loss = Callable[..., dict[str, Tensor]]
"""(network, ...) -> named scalars, each a mean over the local videos; their sum is minimised."""

MOMENTS = ("exp_avg", "exp_avg_sq")
ZERO_STAGES = (0, 1, 2)


_engines: list[Engine] = []  # that are not closed


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite. Raised on every worker, before the weights change."""


def check_stage(zero: int) -> None:
    """Raise ValueError, with the reason, for a ZeRO stage that GAN training cannot use."""
    if zero == 3:
        raise ValueError(
            "train.zero_stage: 3 partitions the weights, which the double backward of the R1 penalty needs, "
            "and re-applies stale gradients to parameters that a phase does not use; choose 0, 1 or 2"
        )
    if zero not in ZERO_STAGES:
        raise ValueError(f"train.zero_stage: {zero} is no ZeRO stage; choose 0, 1 or 2")


def init_deepspeed(device: str = "cpu") -> None:
    """Import DeepSpeed and join the process group that exists, or that RANK and its like describe."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|deepspeed)\.")
    warnings.filterwarnings("ignore", message=r".*all_gather_into_tensor.*")
    with _quiet():
        import deepspeed

        # The operator is built with g++ and ninja when the group starts, with no way around it in the config.
        # `deepspeed.comm.torch` as an attribute is torch itself; the module is only found here.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
        # It sends weights viewed as bytes, which one without dimensions (a noise strength) cannot be.
        deepspeed.DeepSpeedEngine._broadcast_model = _broadcast
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # A group that exists when this is imported becomes a default argument in it, and never ends.
        importlib.import_module("torch.distributed.nn.functional")
        deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", verbose=False)


def end_deepspeed() -> None:
    """Leave the process group that `init_deepspeed` made: for processes that end by themselves, not for Ray's
    workers. All workers call it.

    A thread of gloo drops the tensors of an operation after the operation is over, and needs Python for it.
    When Python is ending by then, the thread is, and the process with it: "terminate called without an active
    exception". `destroy_process_group` alone ends no thread while something refers to a group, and engines of
    ZeRO 1 and 2 do as long as their hooks are on the weights.
    """
    if not dist.is_initialized():
        return
    import deepspeed

    dist.barrier()
    for engine in list(_engines):
        engine.close()
    gc.collect()
    with _quiet():
        deepspeed.comm.destroy_process_group()
    gc.collect()


def _broadcast(engine: Any) -> None:
    """Give every worker the weights and buffers of worker 0."""
    if dist.get_world_size() > 1:
        for tensor in [*engine.module.parameters(), *engine.module.buffers()]:
            dist.broadcast(tensor.data, src=0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed prints to stdout while it is imported and started."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield


class _Wrapped(nn.Module):
    """What DeepSpeed sees: a module whose forward is a whole loss of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.terms: dict[str, Tensor] = {}

    def forward(self, loss: Loss, args: Sequence[Any], settings: dict[str, Any]) -> Tensor:
        terms = loss(self.network, *args, **settings)
        self.terms = {name: term.detach() for name, term in terms.items()}
        return torch.stack(list(terms.values())).sum()


class Engine:
    """A network that `update` trains over all workers. `network` is frozen outside of `update`."""

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        videos: int,
        zero: int = 1,
        parts: int = 1,
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
    ) -> None:
        """`videos` per worker and update: DeepSpeed asks, nothing depends on it. An update goes over them in
        `parts`, whose gradients are accumulated. The weights of worker 0 win."""
        import deepspeed

        check_stage(zero)
        self.name, self.network, self.zero, self.parts = name, network, zero, parts
        self._parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        optimizer = torch.optim.Adam(self._parameters.values(), lr=lr, betas=betas, eps=eps)
        numbers = sum(p.numel() for p in self._parameters.values())
        bucket = numbers + numbers % 2       # DeepSpeed wants an even one
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": videos // parts,
            "gradient_accumulation_steps": parts,
            "steps_per_print": 10**9,
            "gradient_clipping": 0.0,  # DeepSpeed clips at norm 1 unless told, which changes every GAN step
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": zero, "overlap_comm": False,
                # DeepSpeed's are of 5e8 numbers, 2 GB for each network, however small it is
                "reduce_bucket_size": bucket, "allgather_bucket_size": bucket,
            },
        }
        with _quiet():
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=_Wrapped(network), optimizer=optimizer, config=config
            )
        network.requires_grad_(False)
        _engines.append(self)

    def close(self) -> None:
        """Take DeepSpeed's hooks off the network, which stays usable; nothing else of this can be called."""
        if self not in _engines:
            return
        _engines.remove(self)
        with _quiet():
            self._engine.destroy()
        for parameter in self._parameters.values():
            parameter.__dict__.pop("_dp_group", None)
        del self._engine, self._optimizer

    def update(self, loss: Loss, *args: Any, label: str | None = None, **settings: Any) -> Values:
        """One optimiser step on `loss(network, *args, **settings)`, averaged over the parts and the workers.

        Returns the terms, averaged over the workers, and `<label or name>/grad_norm`. Raises NonFiniteError,
        before any weight changes, on every worker.
        """
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        try:
            terms: list[Values] = []
            for index in range(self.parts):
                total = self._engine(loss, [part(arg, index, self.parts) for arg in args], settings)
                terms.append(mean_over_workers(self._engine.module.terms))
                for term, value in terms[-1].items():
                    if not math.isfinite(value):
                        raise NonFiniteError(f"{term} is {value}")
                self._engine.backward(total)
                if index + 1 < self.parts:
                    self._engine.step()  # only counts: the weights change with the last part
            norm = self._step(label or self.name)
        finally:
            self.network.requires_grad_(False)
        means = {name: sum(values[name] for values in terms) / self.parts for name in terms[0]}
        return {**means, f"{label or self.name}/grad_norm": norm}

    def _step(self, label: str) -> float:
        """Step unless the gradient is not finite; its global norm."""
        if self.zero == 0:  # gradients are whole and already averaged here
            grads = [p.grad for p in self._parameters.values() if p.grad is not None]
            norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])))
            if math.isfinite(norm):
                # A parameter without a gradient would be skipped by Adam; ZeRO 1 and 2 step it with zero.
                for p in self._parameters.values():
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                self._engine.step()
        else:
            self._engine.step()  # computes the norm first, and does nothing when it is not finite
            norm = float("inf") if self._optimizer.overflow else float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient of {label} is not finite")
        return norm

    def moments(self) -> dict[str, Tensor]:
        """Adam's state as whole tensors on CPU: `<parameter>.exp_avg`, `<parameter>.exp_avg_sq` and `step`
        [1].

        A call for all workers at once: under ZeRO 1 and 2 each holds a part.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[str, Tensor] = {"step": torch.tensor([float(self._steps())])}
        for name, parameter in self._parameters.items():
            for moment in MOMENTS:
                if not state["step"]:
                    value = torch.zeros_like(parameter)
                elif self.zero == 0:
                    value = self._optimizer.state[parameter][moment]
                else:
                    value = safe_get_full_optimizer_state(parameter, moment)
                state[f"{name}.{moment}"] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
        return state

    def load_moments(self, state: dict[str, Tensor]) -> None:
        """The reverse of `moments`, on any number of workers and at any ZeRO stage. All workers call it."""
        from deepspeed.utils import safe_set_full_optimizer_state

        wanted = {f"{name}.{moment}" for name in self._parameters for moment in MOMENTS} | {"step"}
        if wanted != set(state):
            wrong = sorted(wanted ^ set(state))[0]
            raise ValueError(f"Adam state of {self.name}: {wrong!r} is missing or left over: another model's")
        if not state["step"]:
            return
        whole = list(self._parameters.values())
        for holder in self._optimizer.single_partition_of_fp32_groups if self.zero else whole:
            self._adam.state[holder] = {
                "step": state["step"][0].clone(), **{m: torch.zeros_like(holder) for m in MOMENTS}
            }  # fmt: skip
        if self.zero:  # ties every parameter to its piece of the flat state, as the first step would
            self._optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._parameters.items():
            for moment in MOMENTS:
                value = state[f"{name}.{moment}"].to(parameter.device)
                if self.zero == 0:
                    self._adam.state[parameter][moment].copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)

    @property
    def _adam(self) -> torch.optim.Optimizer:
        adam: torch.optim.Optimizer = self._optimizer.optimizer if self.zero else self._optimizer
        return adam

    def _steps(self) -> int:
        return max((int(s["step"]) for s in self._adam.state.values() if "step" in s), default=0)


def part(value: Any, index: int, of: int) -> Any:
    """The share of one of `of` parts in a batch, for what has a method of that name; all else is shared."""
    return value.part(index, of) if of > 1 and hasattr(value, "part") else value


def mean_over_workers(values: dict[str, Tensor]) -> Values:
    """Scalars as numbers, each averaged over the workers. All call it with the same names."""
    vector = torch.stack([v.detach().float().reshape(()) for v in values.values()])
    if dist.get_world_size() > 1:
        dist.all_reduce(vector)
        vector /= dist.get_world_size()
    return dict(zip(values, vector.tolist(), strict=True))


def average_buffers(buffers: list[Tensor]) -> None:
    """Replace each buffer by its mean over the workers, e.g. a running mean of a batch that they share."""
    if dist.get_world_size() > 1:
        for buffer in buffers:
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


def from_first_worker(value: int, device: torch.device) -> int:
    """The value that worker 0 holds, on all of them."""
    box = torch.tensor([value], device=device)
    if dist.get_world_size() > 1:
        dist.broadcast(box, src=0)
    return int(box)
