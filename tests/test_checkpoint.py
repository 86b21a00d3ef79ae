"""Checkpoints are whole or not there, and a training goes on from one as it was; signals end a training with one."""

import os
import random
import signal
import threading
import zipfile

import numpy as np
import pytest
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_minitrpo import MiniTRPO, checkpoint
from sb3_minitrpo.checkpoint import RollingCheckpoint, checkpoint_steps, load_checkpoint, save_checkpoint, stop_on_signals


def make_model(normalize=True, **kwargs) -> MiniTRPO:
    env = make_vec_env("CartPole-v1", 2)
    settings = {"n_steps": 64, "batch_size": 64, "n_critic_updates": 2, "seed": 0, "device": "cpu", **kwargs}
    return MiniTRPO("MlpPolicy", VecNormalize(env) if normalize else env, **settings)


def draws() -> tuple:
    return random.random(), float(np.random.rand()), float(th.rand(()))


def state_of(model: MiniTRPO) -> list:
    env = model.get_vec_normalize_env()
    tensors = [*model.policy.state_dict().values()]
    tensors += [value for each in model.policy.optimizer.state_dict()["state"].values() for value in each.values()]
    statistics = [] if env is None else [env.obs_rms.mean.tolist(), env.obs_rms.var.tolist(), float(env.ret_rms.var)]
    return [*(tensor.tolist() for tensor in tensors), *statistics, model.num_timesteps, model._n_updates]


@pytest.mark.parametrize("normalize", [True, False])
def test_a_model_comes_back_with_optimizer_normalisation_steps_and_generators(tmp_path, normalize):
    model = make_model(normalize, target_kl=0.02).learn(300)
    save_checkpoint(model, tmp_path / "c.zip")
    state = state_of(model)
    model.learn(300, reset_num_timesteps=False)
    assert state_of(model) != state

    assert checkpoint_steps(tmp_path / "c.zip") == 384
    loaded = load_checkpoint(MiniTRPO, tmp_path / "c.zip", make_vec_env("CartPole-v1", 2), device="cpu")
    assert state_of(loaded) == state
    assert loaded.target_kl == 0.02
    loaded.learn(200, reset_num_timesteps=False)
    assert loaded.num_timesteps == 384 + 256


def resumed(path) -> list:
    model = load_checkpoint(MiniTRPO, path, make_vec_env("CartPole-v1", 2), device="cpu")
    return state_of(model.learn(300, reset_num_timesteps=False))


def test_going_on_is_reproducible_and_with_other_episodes_than_the_first(tmp_path):
    model = make_model()
    model.env.reset()
    first = model.env.get_original_obs()
    save_checkpoint(model.learn(300), tmp_path / "c.zip")
    assert resumed(tmp_path / "c.zip") == resumed(tmp_path / "c.zip")
    loaded = load_checkpoint(MiniTRPO, tmp_path / "c.zip", make_vec_env("CartPole-v1", 2), device="cpu")
    loaded.env.reset()
    assert not np.allclose(loaded.env.get_original_obs(), first)


def test_generators_go_on_where_they_were(tmp_path):
    model = make_model()
    draws()
    save_checkpoint(model, tmp_path / "c.zip")
    states = checkpoint.generator_states(model.device)
    expected = draws()
    checkpoint.set_generator_states(states, model.device)
    assert draws() == expected
    load_checkpoint(MiniTRPO, tmp_path / "c.zip", make_vec_env("CartPole-v1", 2), device="cpu")
    python, _, torch = draws()  # environments were seeded from NumPy's
    assert (python, torch) == (expected[0], expected[2])


def test_there_are_no_steps_where_there_is_no_checkpoint(tmp_path):
    assert checkpoint_steps(tmp_path / "c.zip") == 0


class Interruption(Exception):
    pass


def test_an_interrupted_checkpoint_leaves_the_good_one(tmp_path, monkeypatch):
    path = tmp_path / "c.zip"
    model = make_model().learn(128)
    save_checkpoint(model, path)
    good = path.read_bytes()
    model.learn(128, reset_num_timesteps=False)
    write_parts = checkpoint.write_parts

    def write_half(file, *args):
        write_parts(file, *args)
        file.truncate(file.tell() // 2)
        raise Interruption

    monkeypatch.setattr(checkpoint, "write_parts", write_half)
    with pytest.raises(Interruption):
        save_checkpoint(model, path)
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == ["c.zip"]

    aside = tmp_path / "c.zip.part"  # what a process that was killed in the middle leaves
    aside.write_bytes(good[:100])
    monkeypatch.undo()
    save_checkpoint(model, path)
    assert zipfile.ZipFile(path).testzip() is None
    assert checkpoint_steps(path) == 256
    assert not aside.exists()


class Watch(BaseCallback):
    """At each step, how many would be lost if it broke off here."""

    def __init__(self, path):
        super().__init__()
        self.path, self.unsaved, self.saved = path, [], []

    def _on_step(self):
        saved = checkpoint_steps(self.path)
        self.unsaved.append(self.model.num_timesteps - saved)
        if saved not in self.saved:
            self.saved.append(saved)
        return True


@pytest.mark.parametrize(
    ("every", "most", "saved"),
    [(300, 256, [0, 256, 512, 768]), (256, 256, [0, 256, 512, 768]), (1, 128, list(range(0, 1024, 128))), (9999, 1024, [0])],
)
def test_no_more_steps_than_asked_for_are_ever_unsaved(tmp_path, every, most, saved):
    """Rollouts have 128 steps; where fewer are asked for, a rollout may be lost."""
    model, watch = make_model(), Watch(tmp_path / "c.zip")
    model.learn(1024, callback=[RollingCheckpoint(tmp_path / "c.zip", every), watch])
    assert max(watch.unsaved) == most <= max(every, 128)
    assert watch.saved == saved
    assert checkpoint_steps(tmp_path / "c.zip") == 1024


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_with_a_checkpoint_and_a_second_one_does_what_it_did_before(tmp_path, number):
    before = signal.signal(number, lambda *_: seen.append(number))
    seen = []
    try:
        with stop_on_signals() as stop:
            timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
            timer.start()
            model = make_model().learn(10**9, callback=[RollingCheckpoint(tmp_path / "c.zip", 10**9), stop])
            timer.join()
            assert stop.received == number
            assert checkpoint_steps(tmp_path / "c.zip") == model.num_timesteps > 0
            assert seen == []
            signal.raise_signal(number)
            assert seen == [number]
        signal.raise_signal(number)
        assert seen == [number, number]
    finally:
        signal.signal(number, before)


def save_on_ranks(path):
    th.manual_seed(100 + dist.get_rank())
    model = make_model(seed=None)
    model.learn(200)
    save_checkpoint(model, path)
    state, drawn = state_of(model), draws()
    assert checkpoint_steps(path) == 256
    loaded = load_checkpoint(MiniTRPO, path, make_vec_env("CartPole-v1", 2), device="cpu")
    again = draws()
    return state == state_of(loaded), drawn, again, loaded.env.unwrapped._seeds, loaded.learn(200).num_timesteps


def test_ranks_write_one_checkpoint_and_go_on_with_generators_of_their_own(ranks, tmp_path):
    (same, drawn, again, seeds, steps), (other_same, *other) = ranks.run(save_on_ranks, tmp_path / "c.zip")
    assert same
    assert other_same
    assert (drawn[0], drawn[2]) == (again[0], again[2])
    assert (other[0][0], other[0][2]) == (other[1][0], other[1][2])
    assert drawn != other[0]
    assert seeds != other[2]
    assert steps == other[3] == 256


def fail_to_save(path):
    model = make_model()
    try:
        save_checkpoint(model, path / "no such folder" / "c.zip")
    except Exception as error:
        return type(error).__name__


def test_a_rank_that_cannot_write_ends_all(ranks, tmp_path):
    assert ranks.run(fail_to_save, tmp_path) == ["FileNotFoundError", "RankError"]
