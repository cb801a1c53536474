"""The optimizer that trains, as quick to begin with as it can be."""

import inspect
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """torch's AdamW (Loshchilov & Hutter 2019), to the bit, without what it does for torch.compile.

    That is decorators which import torch._dynamo when they are first called: as long a wait as for
    torch itself, and nothing here is compiled.
    """

    add_param_group: Any = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad: Any = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict: Any = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
