"""MiniTRPO as a whole: what it accepts, and what holds of every update on every kind of task."""

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_minitrpo import MiniTRPO
from tests.helpers import (
    ACTION_SPACES,
    REFUSED,
    SMALL,
    NoisyExtractor,
    ReachEnv,
    ScaledReturns,
    SharedTrunkPolicy,
    ValueNamedExtractor,
    WatchedTRPO,
    actor_names,
    assert_trust_region_kept,
    distribution,
    moved,
    other_than_default,
    train_log,
    weights,
    with_rollout,
    with_start_of,
)

EXTRACTORS = {"value_named": ValueNamedExtractor, "noisy": NoisyExtractor}


def parameters_of(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def test_constructor_is_that_of_contrib_with_additions_behind():
    ours, contribs = parameters_of(MiniTRPO), parameters_of(sb3_contrib.TRPO)
    in_units_of_our_own = {"target_kl": None, "cg_damping": None}
    assert list(ours.items())[: len(contribs)] == list((contribs | in_units_of_our_own).items())
    assert list(contribs)[-1] == "_init_setup_model"
    assert {"line_search_accept_ratio", "ent_coef"} <= set(list(ours)[len(contribs) :])
    assert all(ours[name] is not inspect.Parameter.empty for name in list(ours)[len(contribs) :])


def test_learn_is_that_of_contrib():
    assert list(parameters_of(MiniTRPO.learn)) == list(parameters_of(sb3_contrib.TRPO.learn))


def test_every_argument_is_an_attribute(tmp_path):
    arguments = other_than_default(tmp_path)
    assert arguments.keys() == parameters_of(MiniTRPO).keys() - {"policy", "env", "device", "_init_setup_model"}
    model = MiniTRPO("MlpPolicy", ReachEnv(), device="cpu", **arguments)
    for name, value in arguments.items():
        assert getattr(model, name) == value, name
    assert model.device == th.device("cpu")
    assert isinstance(model.policy, MiniTRPO.policy_aliases["MlpPolicy"])


def image_env(**kwargs: Any) -> gym.Env:
    env = FakeImageEnv(screen_height=36, screen_width=36, **kwargs)
    env.observation_space.seed(0)
    return env


def extractor(name: str, share: bool) -> dict[str, Any]:
    return {
        "net_arch": [8],
        "ortho_init": False,  # SB3 makes the last layer so small that the features would hardly matter to the policy
        "features_extractor_class": EXTRACTORS[name],
        "share_features_extractor": share,
    }


# name: (policy, environment, further arguments)
TASKS: dict[str, tuple[Any, Callable[[], gym.Env], dict[str, Any]]] = {
    **{name: ("MlpPolicy", env, {}) for name, env in ACTION_SPACES.items()},
    "cnn_discrete": ("CnnPolicy", image_env, {}),
    "cnn_box": ("CnnPolicy", lambda: image_env(discrete=False, channel_first=True), {}),
    "cnn_separate": ("CnnPolicy", image_env, {"policy_kwargs": {"share_features_extractor": False}}),
    "dict_discrete": ("MultiInputPolicy", SimpleMultiObsEnv, {}),
    "dict_box": ("MultiInputPolicy", lambda: SimpleMultiObsEnv(discrete_actions=False), {}),
    "sde": ("MlpPolicy", ReachEnv, {"use_sde": True}),
    "sde_sample_freq": ("MlpPolicy", ReachEnv, {"use_sde": True, "sde_sample_freq": 4}),
    "sde_expln": ("MlpPolicy", ReachEnv, {"use_sde": True, "policy_kwargs": {"use_expln": True, "full_std": False}}),
    "sde_squashed": ("MlpPolicy", ReachEnv, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "sde_squashed_entropy": (
        "MlpPolicy",
        ReachEnv,
        {"use_sde": True, "policy_kwargs": {"squash_output": True}, "ent_coef": 0.01},
    ),
    "value_named_extractor": ("MlpPolicy", ReachEnv, {"policy_kwargs": extractor("value_named", share=True)}),
    "value_named_separate": ("MlpPolicy", ReachEnv, {"policy_kwargs": extractor("value_named", share=False)}),
    "noisy_extractor": ("MlpPolicy", ReachEnv, {"policy_kwargs": extractor("noisy", share=True)}),
    "noisy_separate": ("MlpPolicy", ReachEnv, {"policy_kwargs": extractor("noisy", share=False)}),
    "shared_trunk": (SharedTrunkPolicy, ReachEnv, {}),
    "relu": ("MlpPolicy", ReachEnv, {"policy_kwargs": {"activation_fn": th.nn.ReLU}}),
    "entropy_bonus": ("MlpPolicy", ACTION_SPACES["MultiDiscrete"], {"ent_coef": 0.1}),
    "raw_advantages": ("MlpPolicy", ReachEnv, {"normalize_advantage": False}),
    "thinned_curvature": ("MlpPolicy", ReachEnv, {"sub_sampling_factor": 4}),
    "odd_batch_size": ("MlpPolicy", ReachEnv, {"batch_size": 27}),
    "batch_larger_than_rollout": ("MlpPolicy", ReachEnv, {"batch_size": 1000}),
    "target_kl_schedule": ("MlpPolicy", ReachEnv, {"target_kl": lambda progress: 1e-3 + 0.03 * progress}),
    "weight_decay": (
        "MlpPolicy",
        ReachEnv,
        {"policy_kwargs": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_trust_region_is_kept_on_every_kind_of_task(task):
    policy, make_env, kwargs = TASKS[task]
    model = WatchedTRPO(policy, make_vec_env(make_env, n_envs=2, seed=0), **{**SMALL, "n_steps": 32, **kwargs})
    untrained = weights(model)
    model.learn(3 * 2 * 32)
    assert len(model.updates) == 3
    assert assert_trust_region_kept(model), "not one step was accepted"
    critic = {name for name, _ in model.policy.named_parameters()} - actor_names(model)
    changed = moved(untrained, weights(model))
    assert changed >= actor_names(model)
    assert changed & critic


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("CartPole-v1", {"cg_damping": 1e-3, "gae_lambda": 0.98}),
        ("Pendulum-v1", {"gamma": 0.9, "target_kl": 0.05}),
        ("Pendulum-v1", {"gamma": 0.9, "use_sde": True, "sde_sample_freq": 4}),
    ],
)
def test_trust_region_is_kept_over_a_whole_training(env_id, kwargs):
    model = WatchedTRPO("MlpPolicy", make_vec_env(env_id, n_envs=4, seed=0), n_steps=128, seed=0, device="cpu", **kwargs)
    model.learn(40 * 4 * 128)
    assert len(model.updates) == 40
    assert len(assert_trust_region_kept(model)) >= 36


@pytest.mark.parametrize("frozen", ["features_extractor", "critic"])
def test_parameters_that_the_user_froze_stay(frozen):
    model = with_rollout(WatchedTRPO("MlpPolicy", ReachEnv(), policy_kwargs=extractor("value_named", share=True), **SMALL))
    actor = actor_names(model)
    critic = {name for name, _ in model.policy.named_parameters()} - actor
    names = critic if frozen == "critic" else {name for name in actor if "features_extractor" in name}
    assert names
    for name in names:
        model.policy.get_parameter(name).requires_grad_(False)
    before = weights(model)
    model.train()
    assert_trust_region_kept(model)
    changed = moved(before, weights(model))
    assert not changed & names
    assert changed >= actor - names


@pytest.mark.parametrize("trials", [1, 3])
@pytest.mark.parametrize("task", [*ACTION_SPACES, "sde_squashed", "noisy_extractor", "shared_trunk"])
def test_refused_step_leaves_the_actor_bitwise_as_it_was(task, trials):
    policy, make_env, kwargs = TASKS[task]
    model = with_rollout(MiniTRPO(policy, make_env(), **SMALL, **kwargs, **REFUSED, line_search_max_iter=trials))
    before = weights(model)
    model.train()
    assert train_log(model)["is_line_search_success"] == 0.0
    assert train_log(model)["backtracks"] == trials
    changed = moved(before, weights(model))
    assert not changed & actor_names(model)
    assert changed, "the critic is fitted all the same"


@pytest.mark.parametrize(
    "task", ["MultiDiscrete", "noisy_extractor", "shared_trunk", "value_named_extractor", "cnn_box", "weight_decay"]
)
def test_critic_leaves_everything_that_the_actions_depend_on(task):
    """With and without a critic's step, the actor after an update is bitwise the same, running statistics included."""
    policy, make_env, kwargs = TASKS[task]
    model = with_rollout(MiniTRPO(policy, make_env(), **{**SMALL, **kwargs, "n_critic_updates": 3}))
    actor_alone = with_start_of(model, MiniTRPO(policy, make_env(), **{**SMALL, **kwargs, "n_critic_updates": 0}))
    after = []
    for each in (model, actor_alone):
        np.random.seed(0)
        each.train()
        after.append(weights(each))
    critic = {name for name, _ in model.policy.named_parameters()} - actor_names(model)
    assert critic
    assert moved(*after) == critic


@pytest.mark.parametrize("share", [True, False])
def test_running_statistics_on_the_path_of_the_actor_stay(share):
    model = with_rollout(MiniTRPO("MlpPolicy", ReachEnv(), policy_kwargs=extractor("noisy", share), **SMALL))
    before = weights(model)
    model.train()
    statistics = {name for name in moved(before, weights(model)) if "running" in name}
    own = {f"vf_features_extractor.net.1.running_{name}" for name in ("mean", "var")}
    assert statistics == (set() if share else own)


def test_ratio_is_one_and_divergence_zero_before_the_step_with_dropout_and_batch_normalisation():
    kwargs = {"policy_kwargs": extractor("noisy", share=True), "normalize_advantage": False, **REFUSED}
    model = WatchedTRPO("MlpPolicy", ReachEnv(), **SMALL, **kwargs)
    model.policy.features_extractor.net[1].running_mean.fill_(0.3)  # not what a batch has
    model = with_rollout(model)
    model.rollout_buffer.advantages[:] = 1.0  # which makes of L the mean ratio
    model.policy.train()  # as the user's own code may leave it
    model.train()
    (update,) = model.updates
    assert not update.accepted
    assert update.kl == 0.0
    assert update.log["policy_objective"] == pytest.approx(1.0, abs=1e-6)


def test_a_tiny_trust_region_can_be_kept_with_dropout():
    """Were the mask of dropout drawn anew for each measurement, KL would be thousands of times as much."""
    kwargs = {"policy_kwargs": extractor("noisy", share=True), "target_kl": 1e-5}
    model = WatchedTRPO("MlpPolicy", ReachEnv(), **SMALL, **kwargs)
    model.learn(3 * 64)
    assert len(assert_trust_region_kept(model)) == 3


@pytest.mark.parametrize("task", ["Box", "Discrete", "sde_squashed", "noisy_extractor"])
def test_actor_step_draws_no_random_number_from_torch(task):
    policy, make_env, kwargs = TASKS[task]
    model = with_rollout(MiniTRPO(policy, make_env(), **{**SMALL, **kwargs, "n_critic_updates": 0}))
    generator = th.get_rng_state()
    model.train()
    assert train_log(model)["is_line_search_success"] == 1.0
    assert th.equal(th.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"sub_sampling_factor": 2}),
        ("Pendulum-v1", {"use_sde": True, "sde_sample_freq": 8}),
    ],
)
def test_same_seed_same_weights(env_id, kwargs):
    def trained(seed: int) -> dict[str, th.Tensor]:
        model = MiniTRPO("MlpPolicy", make_vec_env(env_id, n_envs=2), **{**SMALL, **kwargs, "seed": seed})
        return weights(model.learn(5 * 2 * 64))

    assert not moved(trained(seed=1), trained(seed=1))
    assert moved(trained(seed=1), trained(seed=2))


def test_learning_rate_may_be_a_schedule_and_is_the_critics_alone():
    model = MiniTRPO("MlpPolicy", ReachEnv(), **SMALL, learning_rate=lambda progress: 1e-3 * progress)
    model.learn(4 * 64, log_interval=100)
    assert model.logger.name_to_value["train/learning_rate"] == 0.0
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [0.0]
    model = with_rollout(model)  # at the end of training: no progress remains
    before = weights(model)
    model.train()
    assert moved(before, weights(model)) == actor_names(model)


@pytest.mark.parametrize(("task", "dimensions"), [("Box", 3), ("Discrete", 1), ("MultiDiscrete", 2), ("MultiBinary", 3)])
def test_the_default_region_grows_with_the_dimensions_of_an_action(task, dimensions):
    def updated(**settings: Any) -> MiniTRPO:
        return MiniTRPO("MlpPolicy", ACTION_SPACES[task](), **SMALL, **settings).learn(64)

    default, told = updated(), updated(target_kl=0.02 * dimensions, cg_damping=0.15 * dimensions)
    assert (default.target_kl, default.cg_damping) == (None, None)
    assert train_log(default)["target_kl"] == pytest.approx(0.02 * dimensions)
    assert train_log(default)["is_line_search_success"] == 1.0
    assert not moved(weights(default), weights(told))
    assert moved(weights(default), weights(updated(target_kl=0.02 * dimensions, cg_damping=0.1)))


def test_target_kl_may_be_a_schedule():
    model = WatchedTRPO("MlpPolicy", ReachEnv(), **SMALL, target_kl=lambda progress: 1e-3 + 0.04 * progress)
    model.learn(4 * 64)
    expected = [1e-3 + 0.04 * progress for progress in (0.75, 0.5, 0.25, 0.0)]
    assert [update.log["target_kl"] for update in model.updates] == pytest.approx(expected)
    kls = [update.kl for update in assert_trust_region_kept(model)]
    assert kls == sorted(kls, reverse=True)
    assert kls[0] > 10 * kls[-1]


def test_settings_may_be_changed_between_trainings():
    """As with contrib's TRPO, an attribute that is set anew is what the next update goes by."""
    model = WatchedTRPO("MlpPolicy", ReachEnv(), **SMALL, target_kl=0.05, cg_max_steps=10, cg_residual_tol=0.0)
    model.learn(64)
    model.target_kl, model.cg_max_steps = 1e-4, 2
    model.learn(64)
    first, second = assert_trust_region_kept(model)
    assert first.kl > 1e-3
    assert second.bound == 1e-4
    assert (first.log["cg_iterations"], second.log["cg_iterations"]) == (10, 2)


def test_a_target_kl_schedule_may_end_in_zero():
    """Schedules commonly do, and the last rollout overshoots the total: there, progress remaining is negative."""
    model = WatchedTRPO("MlpPolicy", ReachEnv(), **SMALL, target_kl=lambda progress: 0.01 * progress)
    model.learn(100)
    first, last = model.updates
    assert first.bound == pytest.approx(0.01 * 0.36)
    assert last.kl < 1e-6


def test_a_target_kl_schedule_below_zero_is_told():
    model = MiniTRPO("MlpPolicy", ReachEnv(), **SMALL, target_kl=lambda progress: progress - 0.9)
    with pytest.raises(ValueError, match=r"target_kl=-0\.4"):
        model.learn(2 * 64)


def one_update(**kwargs: Any) -> MiniTRPO:
    """A model after one update: from the same weights and the same rollouts, whatever the arguments of the update."""
    model = with_rollout(WatchedTRPO("MlpPolicy", ReachEnv(), **{**SMALL, "n_steps": 256, **kwargs}))
    np.random.seed(0)
    model.train()
    return model


def test_raw_advantages_are_taken_as_they_are():
    """The step does not depend on the scale of the advantages, but on their mean; and L is in their units."""
    normalized, raw = one_update(), one_update(normalize_advantage=False)
    advantages = raw.rollout_buffer.advantages
    assert abs(advantages.mean()) > 0.1
    assert normalized.updates[0].log["policy_objective"] == pytest.approx(normalized.updates[0].improvement, abs=1e-5)
    at_start = raw.updates[0].log["policy_objective"] - raw.updates[0].improvement
    assert at_start == pytest.approx(advantages.mean(), rel=1e-4)


def test_thinning_is_for_the_curvature_alone():
    full, thinned = one_update(), one_update(sub_sampling_factor=4)
    assert thinned.updates[0].log["grad_norm"] == pytest.approx(full.updates[0].log["grad_norm"], rel=1e-5)
    assert moved(weights(full), weights(thinned)) >= actor_names(full)
    assert_trust_region_kept(thinned)  # measured on all samples


def test_entropy_bonus_raises_entropy():
    def entropy_after(ent_coef: float) -> float:
        model = one_update(ent_coef=ent_coef)
        assert_trust_region_kept(model)
        observations = next(model.rollout_buffer.get()).observations
        return float(distribution(model.policy, observations).entropy().mean().detach())

    assert entropy_after(10.0) > entropy_after(0.1) > entropy_after(0.0)


def test_entropy_in_the_log_is_that_of_whole_actions():
    model = with_rollout(MiniTRPO("MlpPolicy", ReachEnv(), **SMALL))
    model.train()
    assert train_log(model)["entropy"] == pytest.approx(3 * 0.5 * np.log(2 * np.pi * np.e), rel=1e-5)  # σ = 1, three times


def test_rollout_buffer_of_the_users_own():
    kwargs = {"rollout_buffer_class": ScaledReturns, "rollout_buffer_kwargs": {"reward_scale": 0.0}}
    model = WatchedTRPO("MlpPolicy", ReachEnv(), **SMALL, **kwargs)
    model.learn(2 * 64)
    assert (model.rollout_buffer.added, model.rollout_buffer.computed) == (128, 2)
    assert not model.rollout_buffer.rewards.any()
    assert_trust_region_kept(model)


def test_vec_normalize():
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=3, seed=0), gamma=0.9)
    model = WatchedTRPO("MlpPolicy", env, **SMALL, gamma=0.9)
    model.learn(3 * 3 * 64)
    assert assert_trust_region_kept(model)
    assert env.obs_rms.count > 3 * 3 * 64
    assert np.abs(model.rollout_buffer.observations).max() <= env.clip_obs
    assert model.get_vec_normalize_env() is env


def test_environments_in_processes_of_their_own():
    """They give what environments in this process give."""
    trained = []
    for kwargs in ({}, {"vec_env_cls": SubprocVecEnv}):
        env = make_vec_env("CartPole-v1", n_envs=2, seed=0, **kwargs)
        trained.append(weights(MiniTRPO("MlpPolicy", env, **SMALL).learn(2 * 2 * 64)))
        env.close()
    assert not moved(*trained)


def test_rollouts_are_those_of_contrib():
    """The same seed gives the same first rollouts, and so the two can be compared."""
    buffers = []
    for algorithm in (MiniTRPO, sb3_contrib.TRPO):
        model = with_rollout(algorithm("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2), n_steps=64, batch_size=64, seed=0))
        buffers.append(model.rollout_buffer)
    for name in ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        np.testing.assert_allclose(getattr(buffers[0], name), getattr(buffers[1], name), rtol=1e-5, atol=1e-6, err_msg=name)


def test_gradients_and_modes_are_left_in_order():
    """After an update the policy predicts as SB3's do, and has no gradient that a later optimizer step would take."""
    model = with_rollout(MiniTRPO("MlpPolicy", ReachEnv(), policy_kwargs=extractor("noisy", share=True), **SMALL))
    model.train()
    assert all(param.requires_grad for param in model.policy.parameters())
    assert all(model.policy.get_parameter(name).grad is None for name in actor_names(model))
    point = np.zeros(3, dtype=np.float32)
    np.testing.assert_array_equal(*(model.predict(point, deterministic=True)[0] for _ in range(2)))
