"""Errors that say which value is wrong, where it stands, and what to do."""

from collections.abc import Callable

import torch as th


class NonFiniteError(ValueError):
    """A NaN or an infinity in the data of an update. Raised before anything is changed."""


def require_finite(name: str, values: th.Tensor, where: Callable[..., str]) -> None:
    """
    :param name: what the message calls the values
    :param values: a tensor of any shape
    :param where: the index of a value, one argument per dimension ↦ where that is, in words
    :raises NonFiniteError: if a value is NaN or infinite
    """
    if not values.is_floating_point() or bool(values.isfinite().all()):
        return
    bad = (~values.isfinite()).nonzero()
    first = tuple(bad[0].tolist())
    raise NonFiniteError(
        f"{name}: {len(bad)} of {values.numel()} values are not finite (NaN or infinite), the first, "
        f"{values[first].item()}, {where(*first)}. No weight was changed. Find where it comes from, in the environment "
        "or its wrappers; stable_baselines3.common.vec_env.VecCheckNan stops at the step that produces it."
    )
