"""Both ways to collect a rollout, field by field."""

import copy
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from rl_zoo3.callbacks import RawStatisticsCallback
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_minitrpo import MiniTRPO, NonFiniteError, rollout
from sb3_minitrpo.numpy_policy import numpy_policy

ACTION_SPACES = {
    "box": spaces.Box(-0.5, 1.0, (2,)),
    "box_matrix": spaces.Box(-1.0, 1.0, (2, 2)),
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}
FIELDS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")


class Walk(gym.Env):
    """A drifting state; episodes end by termination or by a time limit, at lengths that depend on a seed."""

    def __init__(self, action_space: str = "box", dtype=np.float32):
        self.action_space = ACTION_SPACES[action_space]
        self.observation_space = spaces.Box(-np.inf, np.inf, (2, 3), dtype=dtype)
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.state = self.np_random.normal(size=(2, 3))
        return self.state.astype(self.observation_space.dtype), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype))
        self.actions.append(np.array(action))
        self.steps += 1
        self.state = 0.9 * self.state + 0.1 * np.sum(action) + 0.1 * self.np_random.normal(size=(2, 3))
        terminated, truncated = bool(self.np_random.random() < 0.05), self.steps >= 12
        observation = self.state.astype(self.observation_space.dtype)
        return observation, float(self.state.sum()), terminated, truncated, {"is_success": terminated}


class Locals(BaseCallback):
    """Remembers the type and shape of every local variable that it was shown, and when it was called."""

    def __init__(self):
        super().__init__()
        self.seen, self.calls = {}, []

    def _note(self, call):
        self.calls.append((call, self.num_timesteps))
        self.seen[call] = {
            name: (type(v), getattr(v, "shape", None), getattr(v, "dtype", None)) for name, v in self.locals.items()
        }

    def _on_rollout_start(self):
        self.calls.append(("start", self.num_timesteps))

    def _on_step(self):
        self._note("step")
        return True

    def _on_rollout_end(self):
        self._note("end")


def make_model(action_space="box", n_envs=2, fast=True, normalize=False, dtype=np.float32, n_steps=64) -> MiniTRPO:
    env = make_vec_env(lambda: Walk(action_space, dtype), n_envs=n_envs, vec_env_cls=DummyVecEnv)
    env = VecNormalize(env) if normalize else env
    return MiniTRPO("MlpPolicy", env, n_steps=n_steps, batch_size=32, seed=0, fast_path=fast)


def replay_in_torch(model: MiniTRPO, actions: np.ndarray) -> None:
    """Let Stable-Baselines3's loop take given actions, ``(n_steps, n_envs, …)``; all else is the policy's."""
    script = iter(th.as_tensor(actions))

    def forward(obs, deterministic=False):
        chosen = next(script)
        values, log_prob, _ = model.policy.evaluate_actions(obs, chosen if chosen.dim() == 1 else chosen.flatten(1))
        return chosen, values, log_prob

    model.policy.forward = forward


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_the_buffer_holds_what_the_loop_of_sb3_fills_in(action_space, n_envs, normalize):
    fast, slow = (make_model(action_space, n_envs, fast, normalize) for fast in (True, False))
    assert rollout.collects_fast(fast, fast.rollout_buffer, 64)
    slow.policy.load_state_dict(fast.policy.state_dict())
    fast.learn(64 * n_envs, callback=(callback := Locals()))
    actions = fast.rollout_buffer.actions
    if fast.rollout_buffer.generator_ready:  # train() has put environment after environment
        actions = actions.reshape(n_envs, 64, -1).swapaxes(0, 1)
    shape = (64, n_envs, *(() if action_space == "discrete" else fast.action_space.shape))
    as_sampled = {"multi_binary": np.float32}.get(action_space, actions.dtype)
    replay_in_torch(slow, actions.reshape(shape).astype(as_sampled))
    slow.learn(64 * n_envs, callback=(expected := Locals()))

    for name in FIELDS:
        ours, theirs = getattr(fast.rollout_buffer, name), getattr(slow.rollout_buffer, name)
        assert ours.dtype == theirs.dtype, name
        assert np.allclose(ours, theirs, atol=1e-5, rtol=1e-5), name
    assert np.array_equal(fast.rollout_buffer.episode_starts, slow.rollout_buffer.episode_starts)
    assert [info["r"] for info in fast.ep_info_buffer] == pytest.approx([info["r"] for info in slow.ep_info_buffer])
    assert [info["l"] for info in fast.ep_info_buffer] == [info["l"] for info in slow.ep_info_buffer]
    assert fast.ep_success_buffer == slow.ep_success_buffer
    assert np.allclose(fast._last_obs, slow._last_obs, atol=1e-5)
    assert np.array_equal(fast._last_episode_starts, slow._last_episode_starts)
    assert fast.num_timesteps == slow.num_timesteps

    assert callback.calls == expected.calls
    for call in ("step", "end"):
        known = expected.seen[call]
        ours = {name: kind for name, kind in callback.seen[call].items() if name in known}
        assert ours.keys() == known.keys()
        for name in ours:
            if name not in {"callback", "self"}:
                assert ours[name] == known[name], name


def test_timeouts_are_bootstrapped_and_terminations_are_not():
    model = make_model(n_envs=1)
    rewards: list[float] = []
    env = model.env.envs[0].unwrapped
    step = env.step
    env.step = lambda action: (lambda result: (rewards.append(result[1]), result)[1])(step(action))
    model.learn(64)
    buffer = model.rollout_buffer
    ends = np.append(buffer.episode_starts[1:, 0], model._last_episode_starts).astype(bool)
    added = buffer.rewards[:, 0] - np.array(rewards, dtype=np.float32)
    lengths = np.diff(np.flatnonzero(np.append(buffer.episode_starts[:, 0], 1)))
    assert np.count_nonzero(added) > 0
    assert not added[~ends].any()
    assert set(lengths[:-1]) != {12}
    for end, length in zip(np.flatnonzero(ends), lengths, strict=False):
        assert (abs(added[end]) > 1e-6) == (length == 12)


@pytest.mark.parametrize("action_space", ACTION_SPACES)
def test_a_rollout_that_nobody_watches_is_the_same(action_space):
    """To the bit: a callback that only looks does not change a training."""
    watched = make_model(action_space).learn(128, callback=Locals()).rollout_buffer
    alone = make_model(action_space).learn(128).rollout_buffer
    for name in FIELDS:
        assert np.array_equal(getattr(watched, name), getattr(alone, name)), name


class MyEvalCallback(EvalCallback):
    """May do what it likes in its methods."""


EVAL_ENV = make_vec_env("CartPole-v1")


@pytest.mark.parametrize(
    "callback",
    [
        Locals(),
        ConvertCallback(lambda *_: True),
        CallbackList([StopTrainingOnMaxEpisodes(1), Locals()]),
        EveryNTimesteps(10, Locals()),
        EvalCallback(EVAL_ENV, callback_on_new_best=Locals()),
        MyEvalCallback(EVAL_ENV),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_whoever_may_look_is_shown(callback):
    assert rollout.can_look(callback)


def test_callbacks_of_libraries_do_not_look():
    stop = StopTrainingOnNoModelImprovement(3)
    callbacks = [CheckpointCallback(10, "."), EvalCallback(EVAL_ENV, callback_after_eval=stop), RawStatisticsCallback()]
    assert not rollout.can_look(CallbackList(callbacks))
    assert not rollout.can_look(CallbackList([ConvertCallback(None), ProgressBarCallback(), StopTrainingOnMaxEpisodes(1)]))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_advantages_are_those_of_the_buffers_own_recursion(n_envs):
    model = make_model(n_envs=n_envs)
    model.learn(64 * n_envs)
    buffer = copy.deepcopy(model.rollout_buffer)
    buffer.reset()
    rng = np.random.default_rng(0)
    for name in ("rewards", "values"):
        getattr(buffer, name)[:] = rng.normal(size=(64, n_envs))
    buffer.episode_starts[:] = rng.random((64, n_envs)) < 0.1
    dones = rng.random(n_envs) < 0.5
    last_values = rng.normal(size=n_envs).astype(np.float32)
    theirs = copy.deepcopy(buffer)
    theirs.compute_returns_and_advantage(th.as_tensor(last_values), dones)
    rollout.compute_returns_and_advantage(buffer, last_values, dones)
    assert np.allclose(buffer.advantages, theirs.advantages, atol=1e-6)
    assert np.allclose(buffer.returns, theirs.returns, atol=1e-6)


def test_actions_are_clipped_for_the_environment_and_kept_for_the_buffer():
    model = make_model(n_envs=1, n_steps=256)
    model.learn(256)
    taken = np.array(model.env.envs[0].unwrapped.actions)
    kept = model.rollout_buffer.actions[:, 0] if not model.rollout_buffer.generator_ready else model.rollout_buffer.actions
    assert np.array_equal(taken, np.clip(kept, model.action_space.low, model.action_space.high))
    assert (kept != taken).any()


def test_the_same_seed_gives_the_same_rollout():
    first, second = (make_model().learn(128).rollout_buffer.actions for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("replace", [False, True])
def test_weights_that_a_callback_changes_count_from_the_next_step(replace):
    """In place, as ``load_state_dict`` does, or by giving the parameter other memory."""

    class Shift(BaseCallback):
        def _on_step(self):
            bias = self.model.policy.value_net.bias
            if self.n_calls == 10:
                bias.data = bias.data + 100.0 if replace else bias.data.add_(100.0)
            return True

    model = make_model(n_envs=1)
    model._setup_learn(64)
    callback = model._init_callback(Shift())
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    values = model.rollout_buffer.values[:, 0]
    assert (values[:10] < 50).all()
    assert (values[10:] > 50).all()


def collected_with(action: Callable[[MiniTRPO], None], fast: bool) -> MiniTRPO:
    """A rollout, where a callback does something at step 10."""

    class Meddle(BaseCallback):
        def _on_step(self):
            if self.n_calls == 10:
                action(self.model)
            return True

    model = make_model(n_envs=1, fast=fast)
    model._setup_learn(64)
    callback = model._init_callback(Meddle())
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    return model


def new_parameter(model):
    model.policy.value_net.bias = nn.Parameter(th.full((1,), 100.0))


def assigned_state(model):
    state = {name: value.clone() for name, value in model.policy.state_dict().items()}
    state["value_net.bias"] += 100.0
    model.policy.load_state_dict(state, assign=True)


def new_layer(model):
    model.policy.value_net = nn.Linear(64, 1)
    nn.init.constant_(model.policy.value_net.bias, 100.0)


def new_policy(model):
    model.policy = copy.deepcopy(model.policy)
    model.policy.value_net.bias.data += 100.0


def unknown_layer(model):
    model.policy.value_net = nn.Sequential(nn.Linear(64, 1))
    nn.init.constant_(model.policy.value_net[0].bias, 100.0)


@pytest.mark.parametrize("action", [new_parameter, assigned_state, new_layer, new_policy, unknown_layer])
@pytest.mark.parametrize("fast", [True, False])
def test_whatever_a_callback_makes_of_the_policy_counts_from_the_next_step(action, fast):
    values = collected_with(action, fast).rollout_buffer.values[:, 0]
    assert (values[:10] < 50).all()
    assert (values[10:] > 50).all()


@pytest.mark.parametrize("fast", [True, False])
def test_a_hook_that_a_callback_registers_is_run(fast):
    ran = []
    collected_with(lambda model: model.policy.action_net.register_forward_hook(lambda *_: ran.append(1)), fast)
    assert len(ran) >= 54

    class AtTheStart(BaseCallback):
        def _on_rollout_start(self):
            self.model.policy.action_net.register_forward_hook(lambda *_: ran.append(1))

        def _on_step(self):
            return True

    ran.clear()
    make_model(n_envs=1, fast=fast).learn(64, callback=AtTheStart())
    assert len(ran) >= 64


@pytest.mark.parametrize("n_steps", [32, 64])
def test_a_buffer_that_is_handed_over_is_the_one_that_counts(n_steps):
    model = make_model(n_envs=1)
    added = []

    class Counting(RolloutBuffer):
        def add(self, *args):
            added.append(1)
            super().add(*args)

    model._setup_learn(64)
    callback = model._init_callback(None)
    buffer = Counting(64, model.observation_space, model.action_space, device="cpu")
    assert model.collect_rollouts(model.env, callback, buffer, n_steps)
    assert len(added) == n_steps
    model.rollout_buffer.reset()
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, n_steps)


def test_a_callback_can_stop_it():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 5

    model = make_model(n_envs=1)
    model.learn(1000, callback=Stop())
    assert model.num_timesteps == 5
    assert model._n_updates == 0


def test_observations_of_float64_are_kept_as_such():
    fast, slow = (make_model(dtype=np.float64, fast=fast) for fast in (True, False))
    for model in (fast, slow):
        model.learn(64)
    assert fast.rollout_buffer.observations.dtype == slow.rollout_buffer.observations.dtype == np.float64


def test_which_way_is_taken_follows_from_what_is_there(monkeypatch):
    taken = []
    original = rollout.collect_fast
    monkeypatch.setattr("sb3_minitrpo.minitrpo.collect_fast", lambda *args: taken.append(1) or original(*args))
    make_model().learn(64)
    assert taken == [1]
    make_model(fast=False).learn(64)
    model = make_model()
    model.policy.forward = model.policy.forward  # whoever puts a method of their own there is heard
    assert numpy_policy(model.policy) is None
    model.learn(64)
    assert taken == [1]


class TestCheck:
    @pytest.mark.parametrize("fast", [True, False])
    def test_an_observation_that_is_not_finite_is_found_before_it_acts(self, fast):
        model = make_model(n_envs=2, fast=fast)
        model.learn(128)
        before = copy.deepcopy(model.policy.state_dict())
        env = model.env.envs[1].unwrapped
        step, calls = env.step, []

        def broken(action):
            calls.append(1)
            observation, *rest = step(action)
            return (observation * (np.nan if len(calls) == 7 else 1.0)).astype(np.float32), *rest

        env.step = broken
        with pytest.raises(NonFiniteError, match=r"observations: 6 of 12 values .* at step 7 of environment 1"):
            model.learn(128, reset_num_timesteps=False)
        assert len(calls) == 7
        assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())

    def test_the_place_is_named_in_both_layouts_of_the_buffer(self):
        model = make_model(n_envs=2)
        model._setup_learn(64)
        callback = model._init_callback(None)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
        model.rollout_buffer.rewards[5, 1] = np.inf
        with pytest.raises(NonFiniteError, match=r"rewards: 1 of 128 values .* at step 5 of environment 1"):
            rollout.check_rollout(model.rollout_buffer, model._last_obs)
        model.rollout_buffer.rewards[5, 1] = 0.0
        model.rollout_buffer.advantages[6, 1] = np.nan
        next(model.rollout_buffer.get())
        with pytest.raises(NonFiniteError, match=r"advantages: 1 of 128 values .* at step 6 of environment 1"):
            rollout.check_rollout(model.rollout_buffer, model._last_obs)
