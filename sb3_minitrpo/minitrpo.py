"""MiniTRPO: Trust Region Policy Optimization as an algorithm of Stable-Baselines3."""

from functools import partial
from inspect import signature
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_minitrpo.critic import CriticFit, critic_params, fit_critic
from sb3_minitrpo.data_parallel import (
    collect_together,
    common_number_of_minibatches,
    explained_variance,
    mean_and_std,
    require_same_state,
    seed_of_rank,
    set_up_together,
)
from sb3_minitrpo.distributed import averaging, together
from sb3_minitrpo.distributions import action_distribution
from sb3_minitrpo.numpy_policy import fast_fisher_product
from sb3_minitrpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_minitrpo.rollout import check_rollout, collect_fast, collects_fast
from sb3_minitrpo.trust_region import StepInfo, TRPOConfig, TRPOUpdater
from sb3_minitrpo.trust_region.config import check_setting
from sb3_minitrpo.trust_region.fisher import fisher_product
from sb3_minitrpo.trust_region.least_squares import INITIAL_DAMPING, gauss_newton_steps

SelfMiniTRPO = TypeVar("SelfMiniTRPO", bound="MiniTRPO")

# The arguments of MiniTRPO that are settings of the step, under the names that the step has for them.
STEP_SETTINGS = {
    "target_kl": "max_kl",
    "cg_max_steps": "cg_iters",
    "cg_damping": "cg_damping",
    "cg_residual_tol": "residual_tol",
    "line_search_shrinking_factor": "backtrack_coeff",
    "line_search_max_iter": "backtrack_iters",
    "line_search_accept_ratio": "accept_ratio",
    "ent_coef": "ent_coef",
    "sub_sampling_factor": "sub_sampling_factor",
}
COUNTS = {"n_steps": 1, "batch_size": 1, "n_critic_updates": 0, "gn_steps": 0, "gn_cg_steps": 1}  # and the least of each
SMALLEST_KL = 1e-12  # for a schedule that has come to zero
PER_DIMENSION = {"target_kl": 0.02, "cg_damping": 0.15}  # of the action: the defaults, chosen on the tasks of docs/comparison


class MiniTRPO(OnPolicyAlgorithm):
    """
    Trust Region Policy Optimization (TRPO), with the KL divergence of whole actions as the trust region.

    Paper: https://arxiv.org/abs/1502.05477

    Arguments and their order are those of ``sb3_contrib.TRPO``; those behind ``_init_setup_model`` are new. The defaults are
    the same but for ``target_kl`` and ``cg_damping``, which are not in the same units: see the parameters.

    Where a ``torch.distributed`` process group is initialized, all its ranks train one model: each steps environments of
    its own, with seeds of its own, and every update is that of all their data. All ranks call ``learn``. Steps are counted
    over all of them; rank 0 alone logs and calls callbacks, but for those with a true attribute ``every_rank``.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: The learning rate of the value function, it can be a function
        of the current progress remaining (from 1 to 0). The policy has no learning rate.
    :param n_steps: The number of steps to run for each environment per update
        (an update sees ``n_steps * n_envs`` samples)
    :param batch_size: Minibatch size for the value function (on each rank, where there are several)
    :param gamma: Discount factor
    :param cg_max_steps: The largest number of Fisher-vector products in the conjugate gradient solver
    :param cg_damping: λ in (F + λI) x = g, where F is the Fisher matrix of whole actions. For actions of ``d``
        dimensions this is ``d`` times the number that ``sb3_contrib.TRPO`` takes for the same step. ``None``: 0.15 for each
        dimension of an action (a Discrete one has one)
    :param line_search_shrinking_factor: Factor between the lengths of two trials of the line search, in (0, 1)
    :param line_search_max_iter: The largest number of trials of the line search
    :param n_critic_updates: Passes over the rollout to fit the value function
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
        instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
        (-1: only at the beginning of the rollout)
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param normalize_advantage: Whether to bring advantages to mean 0 and standard deviation 1
    :param target_kl: δ, the largest mean KL divergence between the policies before and after an update, in nats: old
        from new, summed over action dimensions; it can be a function of the current progress remaining. For actions
        of ``d`` dimensions this is ``d`` times the number that ``sb3_contrib.TRPO`` takes for the same step. ``None``: 0.02
        nats for each dimension of an action (a Discrete one has one)
    :param sub_sampling_factor: Average the Fisher matrix over every k-th sample only, to save time;
        gradient and line search see all samples
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: The log location for TensorBoard (if None, no logging)
    :param policy_kwargs: Additional arguments to be passed to the policy on creation
    :param verbose: The verbosity level: 0 no output, 1 info, 2 debug
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param line_search_accept_ratio: The line search accepts a step if it brings at least this part of the improvement
        that the gradient promises (0 accepts any improvement, as ``sb3_contrib.TRPO`` does)
    :param ent_coef: Weight of the policy's entropy in the objective, per nat
    :param cg_residual_tol: The solver stops at ‖g − (F + λI)x‖ ≤ cg_residual_tol · ‖g‖, which a small network reaches in
        fewer than ``cg_max_steps`` products
    :param critic: How the value function is fitted: ``"adam"``, by minibatch steps of the policy's optimizer (Adam, unless
        ``policy_kwargs`` names another), or ``"gauss_newton"``, by a few damped Gauss-Newton steps on all samples, which
        need no learning rate: ``learning_rate``, ``batch_size`` and ``n_critic_updates`` have no say then
    :param gn_steps: Gauss-Newton steps per update, with ``critic="gauss_newton"``
    :param gn_cg_steps: The largest number of products per Gauss-Newton step
    :param fast_path: Where the policy is Stable-Baselines3's own MLP policy (Tanh, ReLU or Sigmoid), on a CPU, without gSDE,
        collect rollouts and fit the critic in NumPy, and with one thread of torch multiply by the Fisher matrix there too.
        Everything else goes by torch and Stable-Baselines3's loop, as does all with ``False``.
    :raises ValueError: for an argument that cannot work, with its value and what to do
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float | None = None,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | Schedule | None = None,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        line_search_accept_ratio: float = 0.1,
        ent_coef: float = 0.0,
        cg_residual_tol: float = 1e-4,
        critic: str = "adam",
        gn_steps: int = 4,
        gn_cg_steps: int = 10,
        fast_path: bool = True,
    ):
        if env is not None:
            env = maybe_make_env(env, verbose)
            if isinstance(env.action_space, spaces.Space):  # one of the old gym is converted first
                check_action_space(env.action_space)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=0.0,  # the critic is fitted on its own
            max_grad_norm=0.0,  # the trust region limits the step
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.cg_residual_tol = cg_residual_tol
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.line_search_accept_ratio = line_search_accept_ratio
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.sub_sampling_factor = sub_sampling_factor
        self.critic = critic
        self.gn_steps = gn_steps
        self.gn_cg_steps = gn_cg_steps
        self._critic_damping = INITIAL_DAMPING  # of Gauss-Newton steps, which adapt it from fit to fit
        self.fast_path = fast_path
        if _init_setup_model:
            self._setup_model()

    @property
    def stats_window_size(self) -> int:
        """The argument, which Stable-Baselines3 keeps under a private name."""
        return self._stats_window_size

    def _setup_model(self) -> None:
        self._check_arguments()
        super()._setup_model()
        for method in ("get_distribution", "predict_values"):
            name = f"{self.policy_class.__name__}.{method}()"
            remedy = "use a subclass of stable_baselines3.common.policies.ActorCriticPolicy"
            if not hasattr(self.policy, method):
                raise ValueError(f"there is no {name}: {remedy}")
            others = list(signature(getattr(self.policy, method)).parameters.values())[1:]
            required = [p.name for p in others if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
            if required:
                raise ValueError(f"{name} asks for {', '.join(required)} besides observations: {remedy}, not a recurrent one")

    def _check_arguments(self) -> None:
        """Also called by ``load``, whose keyword arguments replace saved ones."""
        for argument, field in STEP_SETTINGS.items():
            value = self._setting(argument)
            check_setting(field, value(1.0) if argument == "target_kl" and callable(value) else value, name=argument)
        if self.critic not in ("adam", "gauss_newton"):
            raise ValueError(f"critic={self.critic!r}: pass 'adam' or 'gauss_newton'")
        for argument, least in COUNTS.items():
            value = getattr(self, argument)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"{argument}={value!r}: pass a whole number of at least {least}")
        for argument in ("gamma", "gae_lambda"):
            value = getattr(self, argument)
            if not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
                raise ValueError(f"{argument}={value!r}: pass a number in [0, 1]")
        if self.normalize_advantage and self.n_steps * self.n_envs < 2:
            raise ValueError(
                f"n_steps={self.n_steps} with {self.n_envs} environment gives one sample, whose advantage cannot be "
                "normalized: raise n_steps, or pass normalize_advantage=False"
            )

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed_of_rank(seed))

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        return collect_together(self, lambda: self._collect(env, callback, rollout_buffer, n_rollout_steps))

    def _collect(self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        try:
            if self.fast_path and collects_fast(self, rollout_buffer, n_rollout_steps):
                return collect_fast(self, env, callback, rollout_buffer, n_rollout_steps)
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except Exception as error:
            # An observation of NaN ends in an error of torch's or the environment's: say where it comes from instead
            try:
                check_rollout(rollout_buffer, self._last_obs)
            except ValueError as cause:
                raise cause from error
            raise

    def train(self) -> None:
        """One update from the current rollouts: the policy by the trust region step, then the critic by regression."""
        with together():
            check_rollout(self.rollout_buffer, self._last_obs)
        self._update_learning_rate(self.policy.optimizer)
        data = next(self.rollout_buffer.get(batch_size=None))  # every sample once, shuffled

        updater = TRPOUpdater(
            self.policy,
            self._step_config(),
            dist=partial(action_distribution, self.policy),
            average=averaging(),
            fisher=fast_fisher_product if self.fast_path else fisher_product,
            together=together,
        )
        step = updater.step(data.observations, self._actions(data), self._advantages(data), data.old_log_prob)
        critic = self._fit_critic(data, updater.params)

        self._n_updates += 1
        require_same_state(self)
        self._log(step, critic)

    def _fit_critic(self, data: RolloutBufferSamples, actor_params: list[th.Tensor]) -> CriticFit:
        params = critic_params(self.policy, actor_params, data.observations)
        if self.critic == "adam":
            return fit_critic(
                self.policy,
                params,
                data.observations,
                data.returns,
                batch_size=self.batch_size,
                n_epochs=self.n_critic_updates,
                fast=self.fast_path,
                n_minibatches=common_number_of_minibatches(len(data.returns), self.batch_size),
                average=averaging(),
            )
        fit = gauss_newton_steps(
            self.policy,
            self.policy.predict_values,
            data.observations,
            data.returns,
            params,
            damping=self._critic_damping,
            n_steps=self.gn_steps,
            cg_iters=self.gn_cg_steps,
            average=averaging(),
        )
        self._critic_damping = fit.damping
        return CriticFit(fit.loss, accepted=fit.steps > 0)

    def _step_config(self) -> TRPOConfig:
        settings = {field: self._setting(argument) for argument, field in STEP_SETTINGS.items()}
        settings["max_kl"] = self._current_target_kl()
        return TRPOConfig(**settings)

    def _setting(self, argument: str) -> Any:
        """What an argument of the step means for this action space."""
        value = getattr(self, argument)
        if value is None and argument in PER_DIMENSION:
            return PER_DIMENSION[argument] * get_action_dim(self.action_space)
        return value

    def _current_target_kl(self) -> float:
        """Read anew for each update, as the other settings are: they may be changed between two calls of ``learn``."""
        # The last rollout may overshoot the total, and schedules commonly end in zero: a region below rounding, then
        value = FloatSchedule(self._setting("target_kl"))(max(self._current_progress_remaining, 0.0))
        value = SMALLEST_KL if value == 0.0 else value
        check_setting("max_kl", value, name="target_kl")
        return value

    def _actions(self, data: RolloutBufferSamples) -> th.Tensor:
        # The buffer keeps actions as float32 of shape (n, act_dim)
        return data.actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else data.actions

    def _advantages(self, data: RolloutBufferSamples) -> th.Tensor:
        if not self.normalize_advantage:
            return data.advantages
        advantages = data.advantages.double()  # squares of large float32 numbers overflow
        mean, std = mean_and_std(advantages)
        return ((advantages - mean) / (std + 1e-8)).to(data.advantages.dtype)

    def _log(self, step: StepInfo, critic: CriticFit) -> None:
        record = self.logger.record
        buffer = self.rollout_buffer
        values, returns = buffer.values.flatten().astype(np.float64), buffer.returns.flatten().astype(np.float64)

        record("train/policy_objective", step.surrogate)
        record("train/value_loss", critic.loss)
        record("train/explained_variance", explained_variance(values, returns))
        record("train/is_line_search_success", float(step.accepted))
        record("train/step_outcome", step.outcome, exclude="tensorboard")
        if step.accepted:
            record("train/kl_divergence_loss", step.kl)
        else:  # there is no divergence to report, nor is that of an earlier update, not yet written out, this one's
            for table in (self.logger.name_to_value, self.logger.name_to_excluded):
                table.pop("train/kl_divergence_loss", None)
        record("train/step_norm", step.step_size)
        record("train/actual_improvement", step.improve)
        record("train/expected_improvement", step.expected_improve)
        record("train/backtracks", step.backtracks)
        record("train/grad_norm", step.grad_norm)
        record("train/cg_iterations", step.cg_iterations)
        record("train/cg_residual", step.cg_residual)
        record("train/entropy", step.entropy)
        record("train/is_critic_success", float(critic.accepted))
        record("train/target_kl", self._current_target_kl())
        if hasattr(self.policy, "log_std"):
            record("train/std", th.exp(self.policy.log_std).mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        setup = partial(super()._setup_learn, reset_num_timesteps=reset_num_timesteps, tb_log_name=tb_log_name)
        return set_up_together(self, setup, total_timesteps, callback, progress_bar)

    def learn(
        self: SelfMiniTRPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MiniTRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMiniTRPO:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )


def check_action_space(space: spaces.Space) -> None:
    """:raises ValueError: for an action space that Stable-Baselines3 has no action distribution for"""
    supported = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(space, supported):
        names = ", ".join(kind.__name__ for kind in supported)
        raise ValueError(f"action space {space}: MiniTRPO acts in {names}; wrap the environment to give one of these")
    if isinstance(space, spaces.Box) and not space.is_bounded():
        raise ValueError(f"action space {space} is not bounded: wrap the environment with finite low and high")
    if isinstance(space, spaces.MultiBinary | spaces.MultiDiscrete) and len(space.shape) != 1:
        raise ValueError(f"action space {space} has more than one dimension: wrap the environment to flatten it")
