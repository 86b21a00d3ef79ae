"""One update of Trust Region Policy Optimization, on a batch of rollouts from anywhere."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch as th
from torch import nn
from torch.distributions import Distribution

from sb3_minitrpo.trust_region import joint
from sb3_minitrpo.trust_region.averages import Average, average_here
from sb3_minitrpo.trust_region.checks import require_finite
from sb3_minitrpo.trust_region.config import TRPOConfig
from sb3_minitrpo.trust_region.conjugate_gradient import solve
from sb3_minitrpo.trust_region.fisher import Product, fisher_product
from sb3_minitrpo.trust_region.line_search import backtracking_line_search
from sb3_minitrpo.trust_region.modes import evaluation_mode
from sb3_minitrpo.trust_region.parameters import flat_params, flatten, set_flat_params, trainable
from sb3_minitrpo.trust_region.states import States, named_tensors, take

FisherProduct = Callable[[nn.Module, Callable[[States], Distribution], States, Distribution, Sequence[th.Tensor]], Product]


@dataclass(frozen=True)
class StepInfo:
    """
    What one update did and why.

    :param outcome: ``"accepted"``, or why the policy was not moved
    :param surrogate: L at the parameters that the policy now has
    :param entropy: mean entropy of π₀ in nats; estimated from the actions where it has no closed form
    :param grad_norm: ‖g‖
    :param cg_iterations: Fisher-vector products of the solver
    :param cg_residual: ‖g − (F + λI)x‖ / ‖g‖
    :param cg_outcome: how the solver ended, see :class:`~sb3_minitrpo.trust_region.conjugate_gradient.CGSolution`
    :param accepted: whether the policy was moved
    :param step_size: ‖cΔ‖, the norm of the step taken; 0 if none was
    :param improve: L(θ) − L(θ₀) of the step taken; 0 if none was
    :param kl: mean KL(π₀ ‖ π_θ) of the step taken, joint over action dimensions, in nats; 0 if none was
    :param expected_improve: gᵀ(cΔ), the linear model's promise for the step taken; for Δ if none was
    :param backtracks: trials of the line search that were refused
    """

    outcome: str
    surrogate: float
    entropy: float
    grad_norm: float
    cg_iterations: int = 0
    cg_residual: float = 0.0
    cg_outcome: str = "not_started"
    accepted: bool = False
    step_size: float = 0.0
    improve: float = 0.0
    kl: float = 0.0
    expected_improve: float = 0.0
    backtracks: int = 0


class Batch(NamedTuple):
    """Rollouts of π₀: ``n`` states and actions, advantages ``(n,)`` and log-probabilities of whole actions ``(n,)``."""

    states: States
    actions: th.Tensor
    advantages: th.Tensor
    old_logp: th.Tensor


class Measured(NamedTuple):
    """L, entropy and ∇L(θ₀) over the data here, the latter for each trainable parameter; ``None`` where π₀ does not use it."""

    dist: Distribution
    surrogate: th.Tensor
    entropy: th.Tensor
    candidates: list[th.Tensor]
    grads: Sequence[th.Tensor | None]


class Start(NamedTuple):
    """Everything at θ₀ that the update needs: θ and ∇L(θ₀) as flat vectors, and π₀ live and as a snapshot."""

    params: list[th.Tensor]
    theta: th.Tensor
    gradient: th.Tensor
    surrogate: float
    entropy: float
    dist: Distribution
    old_dist: Distribution


class TRPOUpdater:
    """
    One TRPO update at a time, for any policy.

    :param policy: the network. Of its trainable parameters, those that the action distribution depends on are moved;
        which these are is read off the graph.
    :param config: the settings
    :param dist: states ↦ ``torch.distributions.Distribution``; ``policy.dist`` if not given
    :param average: (mean over the ``n`` samples here, n) ↦ mean over all samples, for data that are spread over
        processes; called with small vectors of values, and with one flat vector for g and for each product
    :param fisher: makes v ↦ F v of the data here, with the arguments of
        :func:`~sb3_minitrpo.trust_region.fisher.fisher_product`; for a network of which a faster way is known
    :param together: () ↦ a context in which a part of the data is checked and measured before anything is averaged; for
        data that are spread over processes, it turns an error of one into an error of all
    :ivar params: the parameters that the last step found the action distribution to depend on
    :raises ValueError: if there is no distribution function
    """

    def __init__(
        self,
        policy: nn.Module,
        config: TRPOConfig | None = None,
        dist: Callable[[States], Distribution] | None = None,
        average: Average = average_here,
        fisher: FisherProduct = fisher_product,
        together: Callable[[], AbstractContextManager] = nullcontext,
    ):
        dist = dist if dist is not None else getattr(policy, "dist", None)
        if dist is None:
            raise ValueError(
                f"{type(policy).__name__} gives no action distribution: write a method "
                "dist(states) -> torch.distributions.Distribution, or pass one as dist="
            )
        self.policy = policy
        self.config = config or TRPOConfig()
        self.dist = dist
        self.average = average
        self.fisher = fisher
        self.together = together
        self.params: list[th.Tensor] = []

    def step(self, states: States, actions: th.Tensor, advantages: th.Tensor, old_logp: th.Tensor) -> StepInfo:
        """
        Raise L(θ) = mean[A · exp(log π_θ(a|s) − log π₀(a|s))] under mean KL(π₀ ‖ π_θ) ≤ δ by one step:

            (F + λI) x = g,   Δ = x √(2δ / xᵀ(F + λI)x),   θ = θ₀ + cΔ with the first c that the line search accepts.

        Source: Schulman et al. (2015), "Trust Region Policy Optimization", equation 14 and appendix C. If no step is
        accepted, the policy is bitwise as before; so it is after an error. While it is measured and moved it is in
        evaluation mode, so that dropout and batch normalisation do not make it a different policy each time.

        :param states: shape ``(n, …)``, or a dictionary of such tensors
        :param actions: shape ``(n, …)``, as ``log_prob`` of the distribution takes them
        :param advantages: A, shape ``(n,)``
        :param old_logp: log π₀(a|s) of whole actions, as they were when sampled, shape ``(n,)``
        :return: what was done
        :raises ValueError: for shapes that do not fit, values that are not finite, or a policy that cannot be moved
        """
        cfg = self.config
        with evaluation_mode(self.policy), th.enable_grad():
            with self.together():
                batch = checked_batch(states, actions, advantages, old_logp)
                here = self._measure(batch)
            start = self._start(here, n=len(advantages))
            grad_norm = float(th.linalg.vector_norm(start.gradient, dtype=th.float64))
            info = StepInfo("gradient is zero", start.surrogate, start.entropy, grad_norm)
            if not 0.0 < grad_norm < math.inf:
                return info if grad_norm == 0.0 else replace(info, outcome="gradient not finite")

            # Δ does not depend on the length of g: with length one, no square over- or underflows.
            solution = solve(self._product(start, batch), start.gradient / grad_norm, cfg.cg_iters, cfg.residual_tol)
            info = replace(info, cg_iterations=solution.iterations, cg_residual=solution.residual, cg_outcome=solution.outcome)
            xAx = float(solution.x.dot(solution.Ax))
            if not 0.0 < xAx < math.inf:
                return replace(info, outcome=f"no direction: {solution.outcome}")

            full_step = math.sqrt(2.0 * cfg.max_kl / xAx) * solution.x
            return self._search(batch, start, full_step, info)

    def _measure(self, batch: Batch) -> Measured:
        """L, entropy and gradient at θ₀ over the data here, from one pass forward and one back."""
        dist = self._distribution(batch.states, n=len(batch.advantages))
        surrogate, entropy = self._surrogate(dist, batch, with_entropy=True)
        candidates = trainable(self.policy)
        if not (surrogate.requires_grad and candidates):
            raise ValueError(
                "the action distribution depends on no parameter of the policy that requires a gradient: "
                "check requires_grad, and that dist(states) is not computed under torch.no_grad()"
            )
        grads = th.autograd.grad(surrogate, candidates, retain_graph=True, allow_unused=True)
        return Measured(dist, surrogate.detach().double(), entropy.detach().double(), candidates, grads)

    def _start(self, here: Measured, n: int) -> Start:
        """L, g and π₀ at θ₀ over all data."""
        used = [grad is not None for grad in here.grads]
        values = th.stack([here.surrogate, here.entropy])
        surrogate, entropy, *users = self.average(th.cat([values, values.new_tensor(used)]), n).tolist()
        if users != used:
            raise ValueError(
                "the action distribution depends on a parameter for some of the data and not for others: "
                "write dist(states) so that every batch of states goes through the same parameters"
            )
        moved = [(param, grad) for param, grad in zip(here.candidates, here.grads, strict=True) if grad is not None]
        self.params = [param for param, _ in moved]
        return Start(
            params=self.params,
            theta=flat_params(self.params),
            gradient=self.average(flatten([grad for _, grad in moved]), n),
            surrogate=surrogate,
            entropy=entropy,
            dist=here.dist,
            old_dist=joint.snapshot(here.dist),
        )

    def _distribution(self, states: States, n: int) -> Distribution:
        dist = self.dist(states)
        if not isinstance(dist, Distribution):
            raise ValueError(
                f"the policy gave a {type(dist).__name__} where an action distribution was expected: "
                "return a torch.distributions.Distribution"
            )
        if dist.batch_shape[:1] != (n,):
            raise ValueError(
                f"the action distribution of {n} states has batch shape {tuple(dist.batch_shape)}: "
                f"dist(states) must give one distribution for each state, of batch shape ({n},)"
            )
        return dist

    def _surrogate(self, dist: Distribution, batch: Batch, with_entropy: bool) -> tuple[th.Tensor, th.Tensor]:
        """L plus the entropy bonus, and the mean entropy (0 if neither asked for nor needed)."""
        logp = joint.log_prob(dist, batch.actions)
        ratio = th.exp(logp - batch.old_logp)
        surrogate = (batch.advantages * ratio).mean()
        if not (with_entropy or self.config.ent_coef):
            return surrogate, th.zeros(())
        entropy = joint.entropy(dist)
        # Without a closed form: E over π_θ of −log π_θ, by importance weights as in L, so that its gradient is right too
        mean_entropy = (-ratio * logp if entropy is None else entropy).mean()
        if self.config.ent_coef:
            surrogate = surrogate + self.config.ent_coef * mean_entropy
        return surrogate, mean_entropy

    def _product(self, start: Start, batch: Batch) -> Product:
        """v ↦ (F + λI) v, with F averaged over every k-th state."""
        every = self.config.sub_sampling_factor
        states, dist = batch.states, start.dist
        n = len(batch.advantages[::every])
        if every > 1:
            states = take(states, slice(None, None, every))
            dist = self._distribution(states, n)
        fisher = self.fisher(self.policy, self.dist, states, dist, start.params)
        return lambda v: self.average(fisher(v), n) + self.config.cg_damping * v

    def _search(self, batch: Batch, start: Start, full_step: th.Tensor, info: StepInfo) -> StepInfo:
        """Move the policy to θ₀ + cΔ, or leave it at θ₀."""
        cfg = self.config
        promised = float(start.gradient.double().dot(full_step.double()))
        accepted = False
        try:
            found = backtracking_line_search(
                lambda fraction: self._trial(batch, start, start.theta + fraction * full_step),
                promised,
                max_kl=cfg.max_kl,
                shrink=cfg.backtrack_coeff,
                max_trials=cfg.backtrack_iters,
                accept_ratio=cfg.accept_ratio,
            )
            accepted = found.accepted
        finally:
            if not accepted:
                set_flat_params(start.params, start.theta)

        info = replace(info, outcome=found.outcome, backtracks=found.backtracks, expected_improve=promised)
        if not accepted:
            return info
        return replace(
            info,
            accepted=True,
            step_size=found.fraction * float(th.linalg.vector_norm(full_step, dtype=th.float64)),
            improve=found.improve,
            kl=found.kl,
            expected_improve=found.fraction * promised,
            surrogate=start.surrogate + found.improve,
        )

    @th.no_grad()
    def _trial(self, batch: Batch, start: Start, theta: th.Tensor) -> tuple[float, float]:
        """L(θ) − L(θ₀) and KL(θ)."""
        set_flat_params(start.params, theta)
        try:
            dist = self.dist(batch.states)
            surrogate, _ = self._surrogate(dist, batch, with_entropy=False)
            values = th.stack([surrogate.double(), joint.kl(start.old_dist, dist).mean().double()])
        except ValueError:  # how torch.distributions refuses parameters that are not numbers
            values = start.theta.new_full((2,), math.nan, dtype=th.float64)
        surrogate_value, kl = self.average(values, len(batch.advantages)).tolist()
        return surrogate_value - start.surrogate, kl


def checked_batch(states: States, actions: th.Tensor, advantages: th.Tensor, old_logp: th.Tensor) -> Batch:
    """
    :return: the batch, without the graphs that its numbers may come with
    :raises ValueError: for shapes that do not fit or values that are not finite
    """
    n = len(advantages)
    tensors = named_tensors("states", states)
    tensors += [("actions", actions), ("advantages", advantages), ("old_logp", old_logp)]
    if advantages.shape != (n,) or old_logp.shape != (n,) or n == 0 or any(len(tensor) != n for _, tensor in tensors):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors)
        raise ValueError(f"{shapes}: pass n states, n actions, advantages (n,) and old_logp (n,), with n > 0")
    for name, tensor in tensors:
        require_finite(name, tensor, lambda row, *rest: f"in row {row}")
    return Batch(states, actions, advantages.detach(), old_logp.detach())
