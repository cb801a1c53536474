"""Ensembles: several models that answer as one, by the mean of what they say."""

from collections.abc import Sequence

import torch

FAMILY = "ensemble"
MEMBERS_MIN, MEMBERS_MAX = 2, 4
SHARE_MIN = 1e-6
"""Of a member: one that is nearly nothing still has a logarithm."""


class Ensemble(torch.nn.Module):
    """The mean of what its members say, each under its share.

    `trust` holds logarithms, of which the shares are the softmax: whatever numbers stand in it, the
    shares are positive and add up to 1. A specialist that asks its modules for more than `forward`
    derives from this class and its own.
    """

    def __init__(self, members: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(members)
        self.trust = torch.nn.Parameter(torch.zeros(len(members)))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.mean([member(*inputs) for member in self.members])

    def mean(self, said: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of what the members say, in their order, under their shares."""
        shares = self.trust.softmax(0)
        return torch.stack([share * one for share, one in zip(shares, said, strict=True)]).sum(0)

    def shares(self) -> list[float]:
        """Of the members, in their order."""
        told: list[float] = self.trust.detach().softmax(0).tolist()
        return told

    def share_out(self, shares: Sequence[float]) -> None:
        """Give the members these shares, in their order."""
        with torch.no_grad():
            self.trust.copy_(torch.tensor(shares).clamp_min(SHARE_MIN).log())
