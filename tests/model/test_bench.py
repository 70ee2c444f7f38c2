"""The bench: what it counts and what it refuses. Its figures are not tested: they belong to a machine."""

import pytest
import torch

from model import bench


def test_an_unknown_phase_variant_or_device_is_refused():
    with pytest.raises(ValueError, match="phase 'G'"):
        bench.run("tiny", phase="G")
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        bench.run("tini")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            bench.run("tiny", device="cuda")


def test_the_recorder_counts_dense_convolutions_and_no_filters():
    x, w = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3, requires_grad=True)
    with bench.ConvolutionRecorder() as recorder:
        y = torch.nn.functional.conv2d(x, w)
        torch.nn.functional.conv2d(y, torch.ones(3, 1, 2, 2), groups=3)
        y.sum().backward()
    assert sorted(direction for direction, _ in recorder.calls) == ["backward", "forward"]


@pytest.mark.slow
def test_a_phase_of_tiny_is_measured_against_the_plain_formulation():
    lines = []
    figures = bench.run("tiny", phase="G-reg", progress=lines.append, rounds=1, calls=1)["figures"]
    assert {
        "update_speedup",
        "update_speedup_same_allocator",
        "peak_memory_ratio",
        "conv_bound_fraction",
    } <= set(figures)
    assert figures["ours/generator_reg/seconds_best"] > 0
    assert figures["convolution_seconds"] > 0
    assert len(lines) >= 3
