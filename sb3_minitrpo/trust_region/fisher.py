"""v ↦ F v, without ever forming F."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch as th
from torch import nn
from torch.autograd import forward_ad
from torch.distributions import Distribution

from sb3_minitrpo.trust_region.joint import Block, fisher_blocks, kl, snapshot
from sb3_minitrpo.trust_region.parameters import flat_grad, flatten, unflatten
from sb3_minitrpo.trust_region.states import States, take

Product = Callable[[th.Tensor], th.Tensor]
Outputs = Callable[[States], Sequence[th.Tensor]]  # states ↦ z, by way of a network
Jacobian = Callable[[th.Tensor], Sequence[th.Tensor]]


def fisher_product(
    policy: nn.Module,
    dist_at: Callable[[States], Distribution],
    states: States,
    dist: Distribution,
    params: Sequence[th.Tensor],
) -> Product:
    """
    The product with F, the Hessian at θ₀ of the mean over states of KL(π₀ ‖ π_θ).

    :param policy: the network that holds θ
    :param dist_at: states ↦ action distribution, by way of ``policy``
    :param states: a batch of ``n`` states
    :param dist: ``dist_at(states)`` with its graph
    :param params: θ, those parameters that ``dist`` depends on
    :return: v ↦ F v, shape ``(n_params,)`` to ``(n_params,)``
    """
    blocks = fisher_blocks(dist)
    if blocks is None:
        return double_backward_product(dist, params)
    return gauss_newton_product(
        policy,
        lambda states: [block.z for block in fisher_blocks(dist_at(states)) or []],
        states,
        [block for block in blocks if block.z.requires_grad],
        params,
    )


def gauss_newton_product(
    network: nn.Module, outputs_at: Outputs, states: States, blocks: Sequence[Block], params: Sequence[th.Tensor]
) -> Product:
    """
    v ↦ F v with F = mean Jᵀ M J, J = ∂z/∂θ.

    KL has no gradient in z at θ₀, so of its Hessian through the network only JᵀMJ is left, and no second derivative of
    the network is needed (Schraudolph, 2002, "Fast curvature matrix-vector products"; Martens, 2020, section 6).

    :param network: the module that holds θ
    :param outputs_at: states ↦ all z, by way of ``network``
    :param states: a batch of ``n`` states
    :param blocks: those z that depend on θ, with their graph, and the blocks of M
    :param params: θ
    """
    z = [block.z for block in blocks]
    n_states = len(z[0])
    if has_convolutions(network) and has_forward_mode(network, outputs_at, states, params):
        jacobian = jacobian_by_forward_mode(network, outputs_at, states, params)
    else:
        jacobian = jacobian_by_reverse_mode(z, params)

    def product(v: th.Tensor) -> th.Tensor:
        Jv = jacobian(v)
        MJv = [block.metric(x) / n_states for block, x in zip(blocks, Jv, strict=True)]
        return flatten(th.autograd.grad(z, params, MJv, retain_graph=True))

    return product


def jacobian_by_reverse_mode(z: Sequence[th.Tensor], params: Sequence[th.Tensor]) -> Jacobian:
    """
    v ↦ J v. Jᵀu is linear in u, so its derivative in u is J: the graph of u ↦ Jᵀu is built once, and a product walks
    through it. For linear layers this is the fastest way.
    """
    u = [th.zeros_like(tensor, requires_grad=True) for tensor in z]
    Jt_u = th.autograd.grad(z, params, u, create_graph=True)
    return lambda v: th.autograd.grad(Jt_u, u, unflatten(v, params), retain_graph=True)


def jacobian_by_forward_mode(network: nn.Module, outputs_at: Outputs, states: States, params: Sequence[th.Tensor]) -> Jacobian:
    """
    v ↦ J v by one pass forward with tangents. For convolutions, whose derivatives of derivatives are slow, this is the
    fastest way, though it computes z anew; and it keeps no second graph.
    """

    @th.no_grad()
    def jacobian(v: th.Tensor) -> list[th.Tensor]:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(param.detach(), x) for param, x in zip(params, unflatten(v, params), strict=True)]
            with lent_parameters(network, params, duals):
                z = [forward_ad.unpack_dual(output) for output in outputs_at(states)]
            return [tangent for _, tangent in z if tangent is not None]

    return jacobian


@contextmanager
def lent_parameters(network: nn.Module, params: Sequence[th.Tensor], values: Sequence[th.Tensor]) -> Iterator[None]:
    """
    Let a module compute with other tensors in the places of its parameters.

    ``torch.func.functional_call`` is not used: where one module has two names, as a features extractor that actor and
    critic share has, it swaps the same place twice, and leaves the lent tensor there.
    """
    value_of = {id(param): value for param, value in zip(params, values, strict=True)}
    places = [
        (module, name, param)
        for module in network.modules()
        for name, param in module._parameters.items()
        if id(param) in value_of
    ]
    try:
        for module, name, param in places:
            module._parameters[name] = value_of[id(param)]  # type: ignore[assignment]
        yield
    finally:
        for module, name, param in places:
            module._parameters[name] = param


def has_convolutions(network: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in network.modules())


def has_forward_mode(network: nn.Module, outputs_at: Outputs, states: States, params: Sequence[th.Tensor]) -> bool:
    """Whether forward derivatives of all that the network does are there and right: tried on one state, both ways."""
    one = take(states, slice(0, 1))
    v = flatten(params).detach()
    try:
        forward = jacobian_by_forward_mode(network, outputs_at, one, params)(v)
    except NotImplementedError:
        return False
    reverse = jacobian_by_reverse_mode([z for z in outputs_at(one) if z.requires_grad], params)(v)
    return len(forward) == len(reverse) and all(
        th.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())) for a, b in zip(forward, reverse, strict=True)
    )


def double_backward_product(dist: Distribution, params: Sequence[th.Tensor]) -> Product:
    """
    v ↦ F v as the derivative of vᵀ∇KL, for any family of which torch knows the KL (Pearlmutter, 1994).

    :raises ValueError: if torch knows no KL for it
    """
    try:
        mean_kl = kl(snapshot(dist), dist).mean()
    except NotImplementedError:
        raise ValueError(
            f"torch.distributions knows no KL divergence for {type(dist).__name__}: "
            "register one with torch.distributions.register_kl, or use another action distribution"
        ) from None
    grad_kl = flat_grad(mean_kl, params, create_graph=True)
    return lambda v: flatten(th.autograd.grad(grad_kl, params, v, retain_graph=True, materialize_grads=True))
