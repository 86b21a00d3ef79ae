"""The parameters of a network as one flat vector."""

from collections.abc import Iterable, Sequence

import torch as th
from torch import nn

Params = nn.Module | Iterable[th.Tensor]


def trainable(params: Params) -> list[th.Tensor]:
    """
    The tensors that the three functions below mean: those that require a gradient, in the order given.

    :param params: a module, or its parameters
    """
    if isinstance(params, nn.Module):
        params = params.parameters()
    return [param for param in params if param.requires_grad]


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """One vector from many tensors, shape ``(n_params,)``."""
    return th.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(flat: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """
    The inverse of :func:`flatten`: views of ``flat`` in the shapes of ``like``.

    :raises ValueError: if ``flat`` does not have as many elements as ``like``
    """
    sizes = [tensor.numel() for tensor in like]
    if flat.shape != (sum(sizes),):
        raise ValueError(
            f"a flat vector of shape {tuple(flat.shape)} does not fit {sum(sizes)} parameters: pass ({sum(sizes)},)"
        )
    return [chunk.view(tensor.shape) for chunk, tensor in zip(flat.split(sizes), like, strict=True)]


def flat_params(params: Params) -> th.Tensor:
    """
    A copy of the trainable parameters, shape ``(n_params,)``.

    :param params: a module, or its parameters
    """
    return flatten([param.detach() for param in trainable(params)])


@th.no_grad()
def set_flat_params(params: Params, flat: th.Tensor) -> None:
    """
    Write a flat vector into the trainable parameters, in place.

    The parameters keep their own storage: they do not become views of ``flat``, so that a later step of an
    optimizer cannot change the saved vector.

    :param params: a module, or its parameters
    :param flat: shape ``(n_params,)``
    :raises ValueError: if the sizes do not fit; nothing is written then
    """
    params = trainable(params)
    for param, value in zip(params, unflatten(flat, params), strict=True):
        param.copy_(value)


def flat_grad(output: th.Tensor, params: Params, create_graph: bool = False, retain_graph: bool | None = None) -> th.Tensor:
    """
    The gradient of a scalar in the trainable parameters, shape ``(n_params,)``; zero where it does not depend on one.

    The fields ``.grad`` of the parameters are neither read nor written.

    :param output: the scalar to differentiate
    :param params: a module, or its parameters
    :param create_graph: build the graph of the gradient too, for products with second derivatives. The graph of
        ``output`` is part of it and is then kept whatever ``retain_graph`` says.
    :param retain_graph: keep the graph of ``output`` for another call
    """
    params = trainable(params)
    keep = create_graph or bool(retain_graph)
    grads = th.autograd.grad(output, params, create_graph=create_graph, retain_graph=keep, materialize_grads=True)
    return flatten(grads)
