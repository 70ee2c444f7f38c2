"""ArcFace (Deng et al. 2019) and what is trained like it, by an ONNX file of your own."""

from __future__ import annotations

import logging

from stages.backends.identity_file import DEFAULTS, beside, locate, read_facts
from stages.backends.onnx_identity import OnnxIdentity

log = logging.getLogger(__name__)


class ArcFace(OnnxIdentity):
    """`IdentityBackend`: any network from a 112 px face in ArcFace's pose to a vector, usually 512 numbers.

    `weights` is an absolute path, or the name of a file in the folders of weights; `identity_file` says what
    the json beside it may hold. Raises WeightsError for a file that is missing or wrong.
    """

    def __init__(self, weights: str = "") -> None:
        path = locate(weights or DEFAULTS["stages.backends.arcface:ArcFace"])
        if not beside(path).is_file():
            log.info("%s has no %s beside it; taking ArcFace's thresholds", path, beside(path).name)
        super().__init__("arcface", path, read_facts(path))
