"""Haiku networks behind one record, `Model(init, apply)`."""

from bayesian_active_learning.models.convolutions import convolution
from bayesian_active_learning.models.dropped import last_layers
from bayesian_active_learning.models.layers import (
    MODES,
    ConvolutionParameters,
    DropoutLinear,
    dropout,
    max_pool_2x2,
)
from bayesian_active_learning.models.networks import (
    MODELS,
    WITHOUT_DROPOUT,
    batchbald_convnet,
    convnet,
    from_haiku,
    linear,
    mlp,
)
from bayesian_active_learning.precision import PRECISIONS, with_precision

__all__ = [
    "MODELS",
    "MODES",
    "PRECISIONS",
    "WITHOUT_DROPOUT",
    "ConvolutionParameters",
    "DropoutLinear",
    "batchbald_convnet",
    "convnet",
    "convolution",
    "dropout",
    "from_haiku",
    "last_layers",
    "linear",
    "max_pool_2x2",
    "mlp",
    "with_precision",
]
