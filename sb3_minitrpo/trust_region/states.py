"""A batch of states: a tensor, or a dictionary of tensors, whose first dimension counts states."""

from collections.abc import Mapping
from typing import Any

import torch as th

States = th.Tensor | dict[str, th.Tensor]


def take(states: Any, rows: th.Tensor | slice) -> Any:
    """Some of the states, of the same kind."""
    if isinstance(states, Mapping):
        return {key: value[rows] for key, value in states.items()}
    return states[rows]


def named_tensors(name: str, states: Any) -> list[tuple[str, Any]]:
    """The tensors (or arrays) of a batch, each with a name for messages."""
    if isinstance(states, Mapping):
        return [(f"{name}[{key!r}]", value) for key, value in states.items()]
    return [(name, states)]
