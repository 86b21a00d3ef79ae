"""Two ranks make the update of one process with all the data, and stay the same."""

import contextlib
import copy
import io
import math
import re
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import torch.distributed as dist
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_minitrpo import GaussianPolicy, MiniTRPO, NonFiniteError, TRPOConfig, TRPOUpdater, data_parallel, flat_params
from sb3_minitrpo.critic import fit_critic, minibatches
from sb3_minitrpo.distributed import RankError, average, averaging, together
from sb3_minitrpo.trust_region.least_squares import gauss_newton_steps

SPLIT = 100  # rank 0 has rows up to here


def mine(n: int) -> slice:
    return slice(0, SPLIT) if dist.get_rank() == 0 else slice(SPLIT, n)


def relative_difference(a: th.Tensor, b: th.Tensor) -> float:
    return float((a - b).norm() / b.norm())


# The step of the actor


def make_rollouts(seed: int, n: int = 256):
    th.manual_seed(seed)
    policy = GaussianPolicy(5, 2).double()
    states = th.randn(n, 5, dtype=th.float64)
    with th.no_grad():
        pi = policy.dist(states)
        actions = pi.sample()
        logp = pi.log_prob(actions)
    return policy, states, actions, states[:, 0] * actions[:, 0] + th.randn(n, dtype=th.float64), logp


def step_of_part(rollouts, config):
    policy, *batch = copy.deepcopy(rollouts)
    rows = mine(len(batch[0]))
    calls = []

    def counted_all_reduce(tensor, *args, _all_reduce=dist.all_reduce, **kwargs):
        calls.append(tensor.numel())
        return _all_reduce(tensor, *args, **kwargs)

    dist.all_reduce, original = counted_all_reduce, dist.all_reduce
    try:
        info = TRPOUpdater(policy, config, average=average, together=together).step(*(part[rows] for part in batch))
    finally:
        dist.all_reduce = original
    return flat_params(policy), info, calls


@pytest.mark.parametrize(
    "config",
    [
        TRPOConfig(),
        TRPOConfig(ent_coef=0.01, cg_damping=0.1),
        TRPOConfig(max_kl=2.0),  # the line search goes back
        TRPOConfig(accept_ratio=0.999, backtrack_iters=2),  # and refuses
    ],
    ids=["plain", "entropy", "backtracks", "refused"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_step_of_two_ranks_is_the_step_of_one_process_with_all_data(ranks, seed, config):
    rollouts = make_rollouts(seed)
    (theta, info, _), (twin, twin_info, _) = ranks.run(step_of_part, rollouts, config)
    assert th.equal(theta, twin)
    assert info == twin_info

    policy, *batch = rollouts
    before = flat_params(policy)
    expected = TRPOUpdater(policy, config).step(*batch)
    assert relative_difference(theta, flat_params(policy)) < 1e-8
    if expected.accepted:
        assert relative_difference(theta - before, flat_params(policy) - before) < 1e-8
    for name, value in vars(expected).items():
        other = getattr(info, name)
        assert other == (pytest.approx(value, rel=1e-6, abs=1e-12) if isinstance(value, float) else value), name


def test_reductions_are_few_and_flat(ranks):
    """One for agreement, one for L and entropy, one for g, one per product, one per trial of the line search."""
    rollouts = make_rollouts(0)
    n_params = len(flat_params(rollouts[0]))
    for _, info, calls in ranks.run(step_of_part, rollouts, TRPOConfig(max_kl=2.0)):
        assert info.backtracks > 0
        assert calls.count(n_params + 1) == 1 + info.cg_iterations
        assert len(calls) == 3 + info.cg_iterations + info.backtracks + 1
        assert sum(size for size in calls if size != n_params + 1) < 30 + 3 * (info.backtracks + 1)


def step_with_a_bad_number(rollouts):
    policy, states, actions, advantages, logp = copy.deepcopy(rollouts)
    if dist.get_rank() == 1:
        advantages[SPLIT + 3] = math.nan
    rows = mine(len(states))
    before = flat_params(policy)
    try:
        TRPOUpdater(policy, average=average, together=together).step(states[rows], actions[rows], advantages[rows], logp[rows])
    except Exception as error:
        return error, th.equal(flat_params(policy), before)


def test_a_bad_number_on_one_rank_stops_all_before_a_weight_is_moved(ranks):
    (first, unmoved), (second, also_unmoved) = ranks.run(step_with_a_bad_number, make_rollouts(0))
    assert type(first) is RankError
    assert "rank 1 of 2 failed: NonFiniteError: advantages: 1 of 156 values" in str(first)
    assert type(second) is NonFiniteError
    assert unmoved
    assert also_unmoved


class Gated(nn.Module):
    """A layer that only some states go through."""

    def __init__(self):
        super().__init__()
        self.mean, self.rare = nn.Linear(5, 2).double(), nn.Linear(2, 2).double()

    def dist(self, states):
        mean = self.mean(states)
        mean = self.rare(mean) if dist.get_rank() == 1 else mean
        return th.distributions.Independent(th.distributions.Normal(mean, 1.0), 1)


def step_of_unlike_graphs(rollouts):
    _, *batch = rollouts
    TRPOUpdater(Gated(), average=average, together=together).step(*batch)


def test_unlike_parameters_on_unlike_ranks_are_an_error_on_all(ranks):
    for answer in ranks.run(step_of_unlike_graphs, make_rollouts(0)):
        assert type(answer) is ValueError
        assert "for some of the data and not for others" in str(answer)


# The fit of the critic


OBSERVATIONS, ACTIONS = spaces.Box(-np.inf, np.inf, (5,)), spaces.Box(-1.0, 1.0, (2,))


class AsDoubles(BaseFeaturesExtractor):
    """Stable-Baselines3 makes observations float32; the networks behind this are float64."""

    def __init__(self, space):
        super().__init__(space, features_dim=5)

    def forward(self, observations):
        return observations.double()


def make_policy(double: bool) -> ActorCriticPolicy:
    th.manual_seed(0)
    kwargs = {"features_extractor_class": AsDoubles} if double else {}
    policy = ActorCriticPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-2, **kwargs)
    return policy.double() if double else policy


def critic_of(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    return [param for name, param in policy.named_parameters() if "value" in name or name.startswith("vf_")]


def make_targets(double: bool, n: int) -> tuple[th.Tensor, th.Tensor]:
    th.manual_seed(1)
    observations = th.randn(n, 5)
    returns = observations.sum(1) + 3.0
    return observations, returns.double() if double else returns


def fit_part(double, fast, observations, returns):
    rows = mine(len(returns))
    policy = make_policy(double)
    np.random.seed(dist.get_rank())
    n_minibatches = data_parallel.common_number_of_minibatches(rows.stop - rows.start, batch_size=32)
    fit = fit_critic(
        policy, critic_of(policy), observations[rows], returns[rows], 32, 3, fast, n_minibatches, average=averaging()
    )
    return flat_params(policy), fit, n_minibatches


@pytest.mark.parametrize("n", [200, 256, 103], ids=["equal", "unequal", "very_unequal"])
@pytest.mark.parametrize(("double", "fast"), [(True, False), (False, False), (False, True)], ids=["double", "torch", "numpy"])
def test_the_fit_of_two_ranks_is_the_fit_of_one_process_with_their_minibatches_joined(ranks, double, fast, n):
    observations, returns = make_targets(double, n)
    (weights, fit, count), (twin, twin_fit, _) = ranks.run(fit_part, double, fast, observations, returns)
    assert th.equal(weights, twin)
    assert fit == twin_fit

    policy = make_policy(double)
    generators = [np.random.RandomState(rank) for rank in range(2)]
    losses = []
    for _ in range(3):
        orders = [th.from_numpy(generators[0].permutation(SPLIT)), SPLIT + th.from_numpy(generators[1].permutation(n - SPLIT))]
        for parts in zip(*(minibatches(order, 32, count) for order in orders), strict=True):
            rows = th.cat(parts)
            loss = (policy.predict_values(observations[rows]).flatten() - returns[rows]).square().mean()
            policy.optimizer.zero_grad()
            loss.backward(inputs=critic_of(policy))
            policy.optimizer.step()
            losses.append(loss.item())
    assert relative_difference(weights, flat_params(policy)) < (1e-8 if double else 1e-5)
    assert fit.loss == pytest.approx(np.mean(losses), rel=1e-5)


def gauss_newton_part(observations, returns):
    rows = mine(len(returns))
    policy = make_policy(True)
    info = gauss_newton_steps(
        policy, policy.predict_values, observations[rows], returns[rows], critic_of(policy), average=averaging()
    )
    return flat_params(policy), info


def test_gauss_newton_steps_of_two_ranks_are_those_of_one_process_with_all_data(ranks):
    observations, returns = make_targets(True, 256)
    (weights, info), (twin, twin_info) = ranks.run(gauss_newton_part, observations, returns)
    assert th.equal(weights, twin)
    assert info == twin_info
    policy = make_policy(True)
    alone = gauss_newton_steps(policy, policy.predict_values, observations, returns, critic_of(policy))
    assert alone.steps == info.steps > 0
    assert relative_difference(weights, flat_params(policy)) < 1e-8


class WithStatistics(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, features_dim=5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, observations):
        return self.norm(observations)


def fit_with_statistics(shared):
    th.manual_seed(0)
    policy = ActorCriticPolicy(
        OBSERVATIONS, ACTIONS, lambda _: 1e-2, features_extractor_class=WithStatistics, share_features_extractor=shared
    )
    before = copy.deepcopy(policy.state_dict())
    observations, returns = make_targets(False, 100)
    observations = observations + dist.get_rank()
    fit_critic(policy, critic_of(policy), observations, returns, 50, 2, average=averaging())
    return before, policy.state_dict()


def test_running_statistics_of_the_critic_are_the_same_and_those_of_the_actor_unmoved(ranks):
    for shared in (False, True):
        (before, after), (_, twin) = ranks.run(fit_with_statistics, shared)
        assert all(th.equal(after[name], twin[name]) for name in after)
        own = [name for name in after if "running" in name and not th.equal(after[name], before[name])]
        assert bool(own) is not shared
        assert all(name.startswith("vf_features_extractor") for name in own)


@pytest.mark.parametrize(("amounts", "count"), [((64, 64), 2), ((70, 64), 3), ((70, 2), 2), ((1, 1), 1)])
def test_ranks_have_as_many_minibatches_as_the_largest_needs_and_the_smallest_can_fill(ranks, amounts, count):
    assert ranks.run(number_of_minibatches, amounts) == [count, count]
    for amount in amounts:
        parts = minibatches(th.arange(amount), 32, count)
        assert len(parts) == count
        assert all(len(part) > 0 for part in parts)


def number_of_minibatches(amounts):
    return data_parallel.common_number_of_minibatches(amounts[dist.get_rank()], 32)


# Normalisation


class Stream(gym.Env):
    """Observations and rewards far from mean 0 and variance 1, other ones for each seed; episodes of nine steps."""

    action_space = ACTIONS

    def __init__(self, dictionary: bool = False):
        self.dictionary = dictionary
        box = spaces.Box(-np.inf, np.inf, (3,))
        self.observation_space = spaces.Dict({"a": box, "b": spaces.Box(-np.inf, np.inf, (2, 2))}) if dictionary else box

    def _observe(self):
        a = self.np_random.normal(100.0, 3.0, 3).astype(np.float32)
        return {"a": a, "b": self.np_random.normal(-5.0, 0.1, (2, 2)).astype(np.float32)} if self.dictionary else a

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), self.np_random.normal(7.0), self.steps == 9, False, {}


class Recorded(VecNormalize):
    """Keeps all that the running statistics are updated with."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.seen_returns = [], []

    def reset(self):
        observations = super().reset()
        self.seen.append(self.get_original_obs())
        return observations

    def step_wait(self):
        result = super().step_wait()
        self.seen.append(self.get_original_obs())
        return result

    def _update_reward(self, reward):
        super()._update_reward(reward)
        self.seen_returns.append(self.returns.copy())


def walk(dictionary, training):
    rank = dist.get_rank()
    env = Recorded(DummyVecEnv([partial(Stream, dictionary)] * (1 + 2 * rank)), training=training)
    env.seed(rank)
    with data_parallel.pooled_statistics(env):
        env.reset()
    for _ in range(3):
        with data_parallel.pooled_statistics(env):
            for _ in range(20):
                env.step(np.zeros((env.num_envs, 2), dtype=np.float32))
    return env.obs_rms, env.ret_rms, env.seen, env.seen_returns


@pytest.mark.parametrize("dictionary", [False, True])
def test_statistics_are_those_of_one_process_that_saw_it_all(ranks, dictionary):
    answers = ranks.run(walk, dictionary, True)
    (obs, ret, *_), (twin_obs, twin_ret, *_) = answers
    keys = ("a", "b") if dictionary else (None,)
    for key in keys:
        expected = RunningMeanStd(shape=(2, 2) if key == "b" else (3,))
        for *_, seen, _ in answers:
            for observation in seen:
                expected.update(observation[key] if key else observation)
        check_same_statistics(obs[key] if key else obs, twin_obs[key] if key else twin_obs, expected)
    expected = RunningMeanStd(shape=())
    for *_, seen in answers:
        for returns in seen:
            expected.update(returns)
    check_same_statistics(ret, twin_ret, expected)


def check_same_statistics(ours, twin, expected):
    assert (ours.count, ours.mean.tolist(), ours.var.tolist()) == (twin.count, twin.mean.tolist(), twin.var.tolist())
    assert ours.count == pytest.approx(expected.count, rel=1e-12)
    assert np.allclose(ours.mean, expected.mean, rtol=1e-11)
    assert np.allclose(ours.var, expected.var, rtol=1e-9)
    assert ours.mean.shape == expected.mean.shape


def test_statistics_that_are_not_in_training_stay_bitwise(ranks):
    for obs, ret, *_ in ranks.run(walk, False, False):
        fresh = RunningMeanStd(shape=(3,))
        assert (obs.count, obs.mean.tolist(), obs.var.tolist()) == (fresh.count, fresh.mean.tolist(), fresh.var.tolist())
        assert (ret.count, ret.mean, ret.var) == (fresh.count, 0.0, 1.0)


# Whole trainings


class Notes(BaseCallback):
    """What there is on this rank before each rollout."""

    every_rank = True

    def __init__(self):
        super().__init__()
        self.weights, self.statistics, self.steps = [], [], []

    def _on_rollout_start(self):
        state = [self.model.policy.state_dict(), self.model.policy.optimizer.state_dict()["state"]]
        tensors = [*state[0].values(), *(value for each in state[1].values() for value in each.values())]
        self.weights.append(b"".join(tensor.numpy().tobytes() for tensor in tensors))
        env = self.model.get_vec_normalize_env()
        if env is not None:
            self.statistics.append([(rms.count, rms.mean.tolist(), rms.var.tolist()) for rms in (env.obs_rms, env.ret_rms)])
        self.steps.append(self.model.num_timesteps)

    def _on_step(self):
        return True

    def _on_training_end(self):
        self._on_rollout_start()


def make_model(task="CartPole-v1", n_envs=1, normalize=False, seed=0, **kwargs) -> MiniTRPO:
    env = make_vec_env(task, n_envs)
    settings = {"n_steps": 128, "batch_size": 64, "n_critic_updates": 2, "device": "cpu", **kwargs}
    return MiniTRPO("MlpPolicy", VecNormalize(env) if normalize else env, seed=seed, **settings)


class Training(NamedTuple):
    """What can be seen of a training on one rank."""

    weights: list[bytes]
    statistics: list
    steps: list[int]
    episodes: list[tuple[int, float]]
    first_observations: np.ndarray
    logged: dict


def train(steps, n_envs=(1, 1), callback=None, **kwargs) -> Training:
    notes = Notes()
    model = make_model(n_envs=n_envs[dist.get_rank()], **kwargs)
    model.learn(steps, callback=[notes, *([callback] if callback else [])])
    episodes = [(info["l"], info["r"]) for info in model.ep_info_buffer]
    logged = dict(model.logger.name_to_value)
    return Training(notes.weights, notes.statistics, notes.steps, episodes, model.rollout_buffer.observations.copy(), logged)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"normalize": True},
        {"n_envs": (1, 3), "normalize": True},
        {"fast_path": False, "use_sde": True, "task": "Pendulum-v1"},
    ],
    ids=["plain", "normalize", "unequal", "pendulum"],
)
def test_ranks_are_the_same_bitwise_after_every_iteration_and_count_all_steps(ranks, kwargs):
    first, second = ranks.run(train, 1000, **kwargs)
    per_rollout = 128 * sum(kwargs.get("n_envs", (1, 1)))
    assert first.steps == second.steps == list(range(0, 1000 + per_rollout, per_rollout))
    assert first.weights == second.weights
    assert len(set(first.weights)) == len(first.weights)  # and every iteration moved them
    assert first.statistics == second.statistics
    assert first.episodes == second.episodes


def test_ranks_explore_differently_and_a_training_is_reproducible(ranks):
    first, second = ranks.run(train, 600, normalize=True)
    again, _ = ranks.run(train, 600, normalize=True)
    other, _ = ranks.run(train, 600, normalize=True, seed=1)
    assert not np.isclose(first.first_observations, second.first_observations).all(axis=-1).any()
    assert first.weights == again.weights
    assert first.weights[1:] != other.weights[1:]
    assert first.episodes == again.episodes


def fill(model: MiniTRPO, arrays: dict[str, np.ndarray]) -> None:
    for name, values in arrays.items():
        setattr(model.rollout_buffer, name, values.copy())
    model.rollout_buffer.full, model.rollout_buffer.pos = True, len(values)


def update_from_parts(weights, parts):
    """One update from part of a rollout, after which the logger and the weights tell."""
    model = make_model("Pendulum-v1", parts[0]["rewards"].shape[1], n_critic_updates=0)
    model.set_logger(configure(format_strings=[]))
    model.policy.load_state_dict(weights)
    fill(model, parts[dist.get_rank() if dist.is_initialized() else 0])
    model.train()
    return flat_params(model.policy), dict(model.logger.name_to_value)


def test_an_update_of_two_ranks_is_that_of_one_process_with_all_environments(ranks):
    """With advantages normalized over all data and the logged values those of all data, in float32."""
    model = make_model("Pendulum-v1", n_envs=2)
    _, callback = model._setup_learn(256)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=128)
    weights = model.policy.state_dict()
    names = ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns", "episode_starts")
    whole = {name: getattr(model.rollout_buffer, name) for name in names}
    parts = [{name: values[:, i : i + 1] for name, values in whole.items()} for i in range(2)]
    (theta, logged), (twin, _) = ranks.run(update_from_parts, weights, parts)
    expected, expected_log = update_from_parts(weights, [whole])
    assert th.equal(theta, twin)
    before = flat_params(model.policy)
    assert relative_difference(theta - before, expected - before) < 1e-3
    for key in ("policy_objective", "explained_variance", "kl_divergence_loss", "entropy", "grad_norm"):
        assert logged[f"train/{key}"] == pytest.approx(expected_log[f"train/{key}"], rel=1e-3, abs=1e-5), key


def seeds_of_environments(seed):
    model = make_model(n_envs=3, seed=seed)
    drawn = float(th.rand(())), float(np.random.rand())
    return model.env._seeds, drawn


def test_seeds_are_the_given_ones_on_rank_0_and_other_ones_elsewhere(ranks):
    (first, drawn), (second, also_drawn) = ranks.run(seeds_of_environments, 5)
    assert first == [5, 6, 7]
    assert not set(first) & set(second)
    assert all(a != b for a, b in zip(drawn, also_drawn, strict=True))
    assert (first, drawn) == seeds_of_environments(5)


class Where(BaseCallback):
    """Notes on which rank it is called."""

    def __init__(self, every_rank=None, stop_at=None, on_rank=None):
        super().__init__()
        self.calls, self.stop_at, self.on_rank = 0, stop_at, on_rank
        if every_rank is not None:
            self.every_rank = every_rank

    def _on_step(self):
        self.calls += 1
        return not (self.calls == self.stop_at and dist.get_rank() == self.on_rank)


def calls_of_callbacks():
    plain, marked, unmarked, in_list = Where(), Where(every_rank=True), Where(every_rank=False), Where(every_rank=True)
    calls = []
    make_model().learn(256, callback=[plain, marked, CallbackList([unmarked, in_list])])
    make_model().learn(256, callback=lambda *_: calls.append(1) or True)
    return [each.calls for each in (plain, marked, unmarked, in_list)], len(calls)


def test_callbacks_are_called_on_rank_0_and_marked_ones_on_every_rank(ranks):
    assert ranks.run(calls_of_callbacks) == [([128] * 4, 128), ([0, 128, 0, 128], 0)]


@pytest.mark.parametrize("on_rank", [0, 1])
def test_a_callback_that_stops_one_rank_stops_all_together(ranks, on_rank):
    """In its second rollout, of which the other rank takes all 128 steps."""
    first, second = ranks.run(train, 10_000, callback=Where(every_rank=True, stop_at=128 + 40, on_rank=on_rank))
    assert first.steps == second.steps == [0, 256, 256 + 128 + 40]
    assert first.weights == second.weights
    assert ranks.run(train, 300)[0].steps == [0, 256, 512]  # and the group goes on


def logs_of(folder):
    model = make_model(tensorboard_log=str(folder / f"tb{dist.get_rank()}"), verbose=1)
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        model.learn(512, progress_bar=True)
    return len(list(folder.glob(f"tb{dist.get_rank()}/*/events*"))), printed.getvalue()


def test_rank_0_alone_logs_and_shows_the_steps_of_all_ranks(ranks, tmp_path):
    (n_files, printed), (n_files_elsewhere, printed_elsewhere) = ranks.run(logs_of, tmp_path)
    assert n_files == 1
    assert n_files_elsewhere == 0
    assert re.search(r"total_timesteps\s+\| 512", printed)
    assert "512/512" in printed
    assert "total_timesteps" not in printed_elsewhere


def learn_on_from_different_weights(folder):
    model = make_model(seed=dist.get_rank(), normalize=True)
    model.save(folder / str(dist.get_rank()))
    before = flat_params(model.policy)
    model = MiniTRPO.load(folder / str(dist.get_rank()), env=model.env, device="cpu")
    loaded = flat_params(model.policy)
    model.learn(0)
    after = flat_params(model.policy)
    model.learn(256, callback=(notes := Notes()))
    return before, loaded, after, notes.weights


def test_all_go_on_from_what_rank_0_has_also_after_load(ranks, tmp_path):
    (before, loaded, after, weights), (other, _, other_after, other_weights) = ranks.run(
        learn_on_from_different_weights, tmp_path
    )
    assert not th.equal(before, other)
    assert th.equal(before, loaded)
    assert th.equal(before, after)
    assert th.equal(before, other_after)
    assert weights == other_weights


class Meddler(BaseCallback):
    """Moves a weight on rank 1, in the second rollout."""

    every_rank = True

    def _on_step(self):
        if dist.get_rank() == 1 and self.n_calls == 200:
            with th.no_grad():
                self.model.policy.value_net.bias.add_(1e-6)
        return True


def train_with_a_meddler():
    model = make_model()
    try:
        model.learn(2000, callback=Meddler())
    except Exception as error:
        return error, model.num_timesteps


def test_a_weight_that_differs_is_found_after_the_same_update(ranks):
    for error, steps in ranks.run(train_with_a_meddler):
        assert type(error) is RankError
        assert str(error).startswith("weights of rank 1 differ from those of the other ranks")
        assert steps == 512


class Faulty(Stream):
    """Breaks on rank 1, after some steps: raises, or gives what is not a number."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.taken = how, 0

    def step(self, action):
        self.taken += 1
        observation, reward, *rest = super().step(action)
        if dist.get_rank() == 1 and self.taken == 150:
            if self.how == "raises":
                raise OSError("the simulator is gone")
            reward = math.nan
        return observation, reward, *rest


def train_on_faulty(how):
    model = MiniTRPO("MlpPolicy", make_vec_env(partial(Faulty, how)), n_steps=100, batch_size=50, device="cpu")
    try:
        model.learn(2000)
    except Exception as error:
        return error, model._n_updates, flat_params(model.policy)


@pytest.mark.parametrize(("how", "kind"), [("raises", OSError), ("not a number", NonFiniteError)])
def test_an_environment_that_fails_on_one_rank_ends_all_with_its_name(ranks, how, kind):
    (first, updates, theta), (second, other_updates, other_theta) = ranks.run(train_on_faulty, how)
    assert type(second) is kind
    assert type(first) is RankError
    assert str(first) == f"rank 1 of 2 failed: {kind.__name__}: {second}"
    assert updates == other_updates == 1
    assert th.equal(theta, other_theta)


def test_episodes_of_ranks_are_mixed_as_if_they_had_come_in_turn():
    assert data_parallel.in_turn([["a", "b"], [1, 2, 3, 4], []]) == [1, "a", 2, 3, "b", 4]


def train_until_it_plays(normalize):
    model = make_model(n_envs=4, normalize=normalize, n_steps=256, n_critic_updates=10, target_kl=0.02).learn(50_000)
    env = make_vec_env("CartPole-v1", 1, seed=100)
    if normalize:
        env = VecNormalize(env, training=False, norm_reward=False)
        env.obs_rms = model.get_vec_normalize_env().obs_rms
    return evaluate_policy(model, env, n_eval_episodes=10)[0]


@pytest.mark.parametrize("normalize", [False, True])
def test_two_ranks_learn_cartpole(ranks, normalize):
    first, second = ranks.run(train_until_it_plays, normalize)
    assert first >= 475
    assert first == second
