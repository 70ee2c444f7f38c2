"""MobileFaceNet (Chen et al. 2018), foamliu's weights as ONNX: 4 MB, 128 numbers of identity."""

from __future__ import annotations

from infra import weights
from stages.backends.identity_file import Facts
from stages.backends.onnx_identity import OnnxIdentity

# Measured on 51 clips of 32 people: docs/identity.md.
FACTS = Facts(
    same_person=0.45, same_cluster=0.43,
    mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), mirror=True,      # ImageNet's
)  # fmt: skip


class MobileFaceNet(OnnxIdentity):
    """`IdentityBackend`: the file `mobilefacenet` of `pv3d weights list`. Raises WeightsError without it."""

    def __init__(self) -> None:
        super().__init__("mobilefacenet", weights.require("mobilefacenet"), FACTS)
