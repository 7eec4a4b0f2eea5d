"""`torch.ops.cosegflow` under a name that has types (see `_operators.pyi`)."""

import torch

from cosegflow import _library  # noqa: F401  (loads the operators)

operators = torch.ops.cosegflow
