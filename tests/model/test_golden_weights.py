"""The official state dicts load into our networks, name by name (weights.npz)."""

import pytest
import torch

from model.discriminator import ImageDiscriminator, VideoDiscriminator
from model.generator import Generator

GOLDEN_FILE = "weights"
NETWORKS = {"G": Generator, "Dimg": ImageDiscriminator, "Dvid": VideoDiscriminator}


@pytest.fixture(scope="module")
def states(golden):
    networks = {prefix: golden.load(make(golden.config), prefix) for prefix, make in NETWORKS.items()}
    return {
        f"{p}/{name}": value
        for p, network in networks.items()
        for name, value in network.state_dict().items()
    }


def test_golden_weight_has_our_name_and_shape(golden_array, states, golden):
    assert golden_array in states
    assert torch.equal(states[golden_array], golden.arrays("weights")[golden_array])


def test_golden_weights_are_all_of_ours(states, golden):
    assert set(states) == set(golden.arrays("weights"))


@pytest.mark.parametrize("prefix", NETWORKS)
def test_golden_parameter_counts(prefix, golden):
    network = NETWORKS[prefix](golden.config)
    assert sum(p.numel() for p in network.parameters()) == golden.sizes["params"][prefix]
