"""The optimizer: torch's own to the bit."""

import torch

from agent.executors import optimizers


def trained(kind: type[torch.optim.AdamW]) -> list[torch.Tensor]:
    """Weights and the optimizer's memory after a few steps and a state put back."""
    torch.manual_seed(5)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = kind(module.parameters(), lr=0.1, weight_decay=0.01)
    for step in range(6):
        if step == 3:
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad()
        module(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    memory = [each for slots in optimizer.state.values() for each in slots.values()]
    return [*module.state_dict().values(), *memory]


def test_it_is_adamw_of_torch_to_the_bit() -> None:
    ours, theirs = trained(optimizers.AdamW), trained(torch.optim.AdamW)
    assert len(ours) == len(theirs) > 4
    assert all(map(torch.equal, ours, theirs))
