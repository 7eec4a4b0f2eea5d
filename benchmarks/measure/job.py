"""What is timed: one contestant at one case in one direction, over rotating inputs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..case import Case
from ..peers.base import Peer
from ..works.base import Function, Inputs, cotangent


@dataclass
class Job:
    """A contestant, ready to run. `prepare` is not timed, `run` is."""

    name: str
    function: Function
    direction: str
    inputs: list[Inputs]
    _cotangent: Tensor | None = None
    """One serves all inputs: they have one shape."""

    def cotangent(self, output: Tensor) -> Tensor:
        """The gradient of an output."""
        if self._cotangent is None:
            self._cotangent = cotangent(output)
        return self._cotangent

    def leaves(self, index: int) -> dict[str, Tensor]:
        """The inputs that are differentiated."""
        return {k: v for k, v in self.inputs[index % len(self.inputs)].items() if v.requires_grad}

    def prepare(self, index: int) -> tuple[Any, ...]:
        """Backward: the output with its graph, else the inputs; and the tensors to differentiate."""
        inputs = self.inputs[index % len(self.inputs)]
        leaves = list(self.leaves(index).values())
        if self.direction == "backward":
            output = self.function(inputs)
            return output, leaves
        return inputs, leaves

    def run(self, state: tuple[Any, ...]) -> Any:
        """The timed part; may be repeated on one state."""
        first, leaves = state
        if self.direction == "forward":
            with torch.no_grad():
                return self.function(first)
        if self.direction == "backward":
            return torch.autograd.grad(first, leaves, self.cotangent(first), retain_graph=True)
        output = self.function(first)
        return torch.autograd.grad(output, leaves, self.cotangent(output))

    def results(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The output and, unless forward, the gradients on the first inputs."""
        inputs, leaves = self.inputs[0], self.leaves(0)
        if self.direction == "forward":
            with torch.no_grad():
                return self.function(inputs), {}
        output = self.function(inputs)
        found = torch.autograd.grad(output, list(leaves.values()), self.cotangent(output))
        return output.detach(), dict(zip(leaves, found, strict=True))


def make(peer: Peer, work: str, case: Case, direction: str, inputs: list[Inputs], device: torch.device) -> Job:
    """The job of a peer.

    Raises:
        Unavailable: the peer cannot do this here.
    """
    return Job(peer.name, peer.works[work](case, device), direction, inputs)
