"""v ↦ (F + λI) v, without ever forming F."""

from collections.abc import Callable, Sequence

import torch as th
from torch.distributions import Distribution

from sb3_minitrpo.trust_region.joint import Block, fisher_blocks, kl, snapshot
from sb3_minitrpo.trust_region.parameters import flat_grad, flatten, unflatten

Product = Callable[[th.Tensor], th.Tensor]


def fisher_product(dist: Distribution, params: Sequence[th.Tensor], n_states: int) -> Product:
    """
    The product with F, the Hessian at θ₀ of the mean over states of KL(π₀ ‖ π_θ).

    :param dist: π(·|s; θ₀) for a batch of states, with its graph
    :param params: θ, those parameters that ``dist`` depends on
    :param n_states: the number of states in the batch
    :return: v ↦ F v, shape ``(n_params,)`` to ``(n_params,)``
    """
    blocks = fisher_blocks(dist)
    if blocks is None:
        return double_backward_product(dist, params)
    return gauss_newton_product([block for block in blocks if block.z.requires_grad], params, n_states)


def gauss_newton_product(blocks: Sequence[Block], params: Sequence[th.Tensor], n_states: int) -> Product:
    """
    v ↦ F v with F = mean Jᵀ M J, J = ∂z/∂θ.

    KL has no gradient in z at θ₀, so of its Hessian through the network only JᵀMJ is left, and no second derivative of
    the network is needed (Schraudolph, 2002; Martens, 2020, section 6). Jᵀu is linear in u, so its derivative in u is J:
    with the graph of u ↦ Jᵀu built once, a product is two walks through graphs that are there.
    """
    z = [block.z for block in blocks]
    u = [th.zeros_like(tensor, requires_grad=True) for tensor in z]
    Jt_u = th.autograd.grad(z, params, u, create_graph=True)

    def product(v: th.Tensor) -> th.Tensor:
        Jv = th.autograd.grad(Jt_u, u, unflatten(v, params), retain_graph=True)
        MJv = [block.metric(x) / n_states for block, x in zip(blocks, Jv, strict=True)]
        return flatten(th.autograd.grad(z, params, MJv, retain_graph=True))

    return product


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
