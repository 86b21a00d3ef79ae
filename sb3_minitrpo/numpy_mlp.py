"""A multilayer perceptron in NumPy, on the memory of its torch parameters: forward, and both kinds of derivatives."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from threadpoolctl import ThreadpoolController
from torch import nn

Array = np.ndarray

# NumPy's BLAS and torch have threads of their own, which wait by spinning. Where both compute in turns, with more threads
# than idle cores, an update can take a hundred times as long. The products here are too small for a second thread anyway.
BLAS = ThreadpoolController().select(user_api="blas")


def sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # does not overflow


class Activation(NamedTuple):
    """A function and its derivative, the latter from the function's value."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


# Only such as have no settings of their own
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: Activation(np.tanh, lambda y: 1.0 - y * y),
    nn.ReLU: Activation(lambda x: np.maximum(x, 0.0), lambda y: y > 0.0),
    nn.Sigmoid: Activation(sigmoid, lambda y: y * (1.0 - y)),
}


class Layer(NamedTuple):
    """A linear layer and what follows it. The arrays share the memory of the parameters."""

    linear: nn.Linear
    weight: Array  # (in, out)
    bias: Array
    activation: Activation | None


def layers_of(hidden: nn.Sequential, last: nn.Module) -> list[Layer]:
    modules = [*hidden, last]
    return [
        Layer(module, module.weight.detach().numpy().T, module.bias.detach().numpy(), ACTIVATIONS.get(type(following)))
        for module, following in zip(modules, [*modules[1:], None], strict=True)
        if isinstance(module, nn.Linear)
    ]


def apply(layers: Sequence[Layer], x: Array) -> Array:
    for _, weight, bias, activation in layers:
        x = x.dot(weight)
        x += bias
        if activation is not None:
            x = activation.value(x)
    return x


class Pass(NamedTuple):
    """
    A forward pass, kept for derivatives.

    :param inputs: the input of each layer
    :param slopes: the derivative of what stands before each layer: of the activation, or ``None``
    :param output: what the last layer gives, shape ``(n, out)``
    """

    inputs: list[Array]
    slopes: list[Array | None]
    output: Array


def forward(layers: Sequence[Layer], x: Array) -> Pass:
    inputs: list[Array] = []
    slopes: list[Array | None] = []
    slope = None
    for layer in layers:
        inputs.append(x)
        slopes.append(slope)
        x = apply([layer], x)
        slope = layer.activation.slope(x) if layer.activation is not None else None
    return Pass(inputs, slopes, x)


def backward(layers: Sequence[Layer], done: Pass, delta: Array) -> dict[th.Tensor, Array]:
    """Jᵀδ, the gradient in each parameter of the sum of δ, of shape ``(n, out)``, times the output."""
    gradient: dict[th.Tensor, Array] = {}
    ones = np.ones(len(delta), dtype=np.float32)
    for layer, x, slope in zip(reversed(layers), reversed(done.inputs), reversed(done.slopes), strict=True):
        gradient[layer.linear.weight] = delta.T @ x
        gradient[layer.linear.bias] = ones @ delta
        if slope is not None:
            # with one output the product is an outer one, which NumPy is quicker to broadcast
            delta = delta * layer.weight.T if delta.shape[1] == 1 else delta @ layer.weight.T
            delta *= slope
    return gradient


def tangent(layers: Sequence[Layer], done: Pass, direction: Mapping[th.Tensor, Array]) -> Array:
    """Jv, the derivative of the output for a direction v in the parameters, shape ``(n, out)``."""
    Jv: Array | None = None
    for layer, x, slope in zip(layers, done.inputs, done.slopes, strict=True):
        moved = x @ direction[layer.linear.weight].T + direction[layer.linear.bias]
        if Jv is not None and slope is not None:
            moved += (Jv * slope) @ layer.weight
        Jv = moved
    assert Jv is not None, "a network has a layer"
    return Jv


def regression_gradient(layers: Sequence[Layer], x: Array, targets: Array) -> float:
    """
    mean (V(x) − R)², with its gradient in each parameter put into ``.grad``.

    :param layers: V, with one output
    :param x: shape ``(n, in)``
    :param targets: R, shape ``(n,)``
    """
    done = forward(layers, x)
    error = done.output[:, 0] - targets
    for param, grad in backward(layers, done, (error * np.float32(2.0 / len(x)))[:, None]).items():
        param.grad = th.from_numpy(grad)
    return float(error.dot(error)) / len(x)
