"""What Stable-Baselines3's callbacks see, and what the loggers write."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_minitrpo import MiniTRPO
from tests.helpers import REFUSED, SMALL, ReachEnv, moved, weights

OUR_KEYS = {
    "train/grad_norm",
    "train/cg_iterations",
    "train/cg_residual",
    "train/backtracks",
    "train/step_norm",
    "train/expected_improvement",
    "train/actual_improvement",
    "train/entropy",
    "train/step_outcome",
}

WHY = ("KL above the bound", "surrogate not improved", "improvement below the accepted ratio")


def reach(n_envs: int = 1) -> Any:
    return make_vec_env(ReachEnv, n_envs=n_envs, seed=0)


class Locals(BaseCallback):
    """Notes what a callback finds in ``self.locals``: the names, and of arrays and tensors shape and type."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, Any]] = {}

    def _look(self, event: str) -> None:
        def kind(value: Any) -> Any:
            return (type(value), value.shape, value.dtype) if isinstance(value, np.ndarray | th.Tensor) else None

        self.seen[event] = {name: kind(value) for name, value in self.locals.items()}

    def _on_training_start(self) -> None:
        self._look("training_start")

    def _on_step(self) -> bool:
        self._look("step")
        return True

    def _on_rollout_end(self) -> None:
        self._look("rollout_end")


@pytest.mark.parametrize(("env", "kwargs"), [("CartPole-v1", {}), ("Pendulum-v1", {}), ("Pendulum-v1", {"use_sde": True})])
def test_callbacks_see_the_names_that_they_see_in_contrib(env, kwargs):
    seen = []
    for algorithm in (MiniTRPO, sb3_contrib.TRPO):
        callback = Locals()
        algorithm("MlpPolicy", make_vec_env(env, n_envs=2), n_steps=16, batch_size=32, device="cpu", **kwargs).learn(
            64, callback
        )
        seen.append(callback.seen)
    ours, contribs = seen
    assert ours.keys() == contribs.keys()
    for event, names in contribs.items():
        assert names.items() <= ours[event].items(), event


class Order(BaseCallback):
    """Notes the order of events and the number of timesteps at each."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, int]] = []

    def _on_training_start(self) -> None:
        self.events.append(("training_start", self.num_timesteps))

    def _on_rollout_start(self) -> None:
        self.events.append(("rollout_start", self.num_timesteps))

    def _on_step(self) -> bool:
        self.events.append(("step", self.num_timesteps))
        return True

    def _on_rollout_end(self) -> None:
        self.events.append(("rollout_end", self.num_timesteps))

    def _on_training_end(self) -> None:
        self.events.append(("training_end", self.num_timesteps))


def test_events_come_in_the_order_of_sb3():
    callback = Order()
    MiniTRPO("MlpPolicy", reach(n_envs=2), **{**SMALL, "n_steps": 3}).learn(12, callback)
    rollouts = [
        event
        for start in (0, 6)
        for event in [
            ("rollout_start", start),
            *(("step", start + 2 * i) for i in (1, 2, 3)),
            ("rollout_end", start + 6),
        ]
    ]
    assert callback.events == [("training_start", 0), *rollouts, ("training_end", 12)]


def test_callback_that_returns_false_stops_before_the_update():
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 100

    model = MiniTRPO("MlpPolicy", reach(), **SMALL)
    model.learn(1000, Stop())
    assert model.num_timesteps == 100
    after_one_update = MiniTRPO("MlpPolicy", reach(), **SMALL).learn(64)
    assert not moved(weights(model), weights(after_one_update))


def test_eval_callback_writes_a_best_model_that_loads(tmp_path):
    callback = EvalCallback(
        reach(), eval_freq=64, n_eval_episodes=3, log_path=tmp_path, best_model_save_path=tmp_path, verbose=0
    )
    model = MiniTRPO("MlpPolicy", reach(), **SMALL).learn(4 * 64, callback)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [64, 128, 192, 256]
    assert np.isfinite(evaluations["results"]).all()
    best = MiniTRPO.load(tmp_path / "best_model", device="cpu")
    assert weights(best).keys() == weights(model).keys()
    assert best.num_timesteps == int(evaluations["timesteps"][evaluations["results"].mean(1).argmax()])


def test_checkpoint_callback_writes_models_that_learn_on(tmp_path):
    MiniTRPO("MlpPolicy", reach(), **SMALL).learn(
        4 * 64, CheckpointCallback(save_freq=100, save_path=tmp_path, name_prefix="trpo")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trpo_100_steps.zip", "trpo_200_steps.zip"]
    model = MiniTRPO.load(tmp_path / "trpo_100_steps", env=reach(), device="cpu")
    assert model.num_timesteps == 100
    before = weights(model)
    assert moved(before, weights(model.learn(64, reset_num_timesteps=False)))


def test_stop_training_on_reward_threshold():
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e6)
    model = MiniTRPO("MlpPolicy", reach(), **SMALL)
    model.learn(10 * 64, EvalCallback(reach(), callback_on_new_best=stop, eval_freq=100, n_eval_episodes=1, verbose=0))
    assert model.num_timesteps == 100


def test_stop_training_on_max_episodes():
    model = MiniTRPO("MlpPolicy", reach(), **SMALL).learn(10 * 64, StopTrainingOnMaxEpisodes(max_episodes=8))
    assert model.num_timesteps == 8 * 10  # episodes of ten steps


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar_reaches_the_end(capsys):
    model = MiniTRPO("MlpPolicy", reach(), **SMALL).learn(2 * 64, progress_bar=True)
    assert model.num_timesteps == 128
    shown = capsys.readouterr()
    assert "128/128" in (shown.out + shown.err).replace(" ", "")


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def json_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "progress.json").read_text().splitlines()]


def tensorboard_values(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {key: [(event.step, event.value) for event in accumulator.Scalars(key)] for key in accumulator.Tags()["scalars"]}


class DumpAtEnd(BaseCallback):
    """Writes out the numbers of the last update too, as SB3 does at the start of the next."""

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.logger.dump(self.num_timesteps + 1)


def logged(algorithm: Any, folder: Path, **kwargs: Any) -> Path:
    """The folder of the logs of three updates."""
    model = algorithm("MlpPolicy", reach(), **{**SMALL, **kwargs})
    model.set_logger(configure(str(folder), ["csv", "json", "tensorboard"]))
    model.learn(3 * 64, DumpAtEnd())
    return folder


def test_loggers_write_the_keys_of_contrib_and_ours(tmp_path):
    ours = logged(MiniTRPO, tmp_path / "ours")
    contribs = logged(sb3_contrib.TRPO, tmp_path / "contribs")
    for rows in (csv_rows, json_rows):
        assert set().union(*rows(contribs)) | OUR_KEYS <= set().union(*rows(ours)), rows.__name__
    words = {"train/step_outcome"}
    assert set(tensorboard_values(contribs)) | OUR_KEYS - words <= set(tensorboard_values(ours))


def test_loggers_agree(tmp_path):
    """CSV, JSON and TensorBoard tell the same story, and it is a possible one."""
    logged(MiniTRPO, tmp_path)
    told = [row for row in json_rows(tmp_path) if "train/n_updates" in row]
    assert [row["train/n_updates"] for row in told] == [1, 2, 3]
    from_csv = [row for row in csv_rows(tmp_path) if row["train/n_updates"]]
    curves = tensorboard_values(tmp_path)
    for i, row in enumerate(told):
        assert row["train/step_outcome"] == from_csv[i]["train/step_outcome"] == "accepted"
        assert row["train/is_line_search_success"] == 1.0
        assert 0.0 < row["train/kl_divergence_loss"] <= row["train/target_kl"]
        assert row["train/actual_improvement"] >= 0.1 * row["train/expected_improvement"] > 0.0
        assert row["train/step_norm"] > 0.0
        assert 1 <= row["train/cg_iterations"] <= 15
        assert 0.0 <= row["train/cg_residual"] < 1.0
        assert 0 <= row["train/backtracks"] < 10
        for key in OUR_KEYS - {"train/step_outcome"} | {"train/kl_divergence_loss"}:
            assert float(from_csv[i][key]) == pytest.approx(row[key], rel=1e-6), key
            assert curves[key][i][1] == pytest.approx(row[key], rel=1e-6), key


def test_log_of_a_refused_step_says_so_and_why(tmp_path):
    logged(MiniTRPO, tmp_path, **REFUSED, line_search_max_iter=2)
    told = [row for row in json_rows(tmp_path) if "train/n_updates" in row]
    assert len(told) == 3
    for row in told:
        assert row["train/is_line_search_success"] == 0.0
        assert row["train/step_outcome"] in (
            "KL above the bound",
            "surrogate not improved",
            "improvement below the accepted ratio",
        )
        assert row["train/step_norm"] == row["train/actual_improvement"] == 0.0
        assert row["train/expected_improvement"] > 0.0
        assert row["train/backtracks"] == 2
    assert "train/kl_divergence_loss" not in set().union(*json_rows(tmp_path), *csv_rows(tmp_path))
    assert "train/kl_divergence_loss" not in tensorboard_values(tmp_path)


def test_divergence_of_an_earlier_step_does_not_pass_for_that_of_a_refused_one(tmp_path):
    """Logs are written every few updates only: what is not replaced stays from the last time."""
    model = MiniTRPO("MlpPolicy", reach(), **SMALL)
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json"]))
    model.learn(64, log_interval=100)
    assert model.logger.name_to_value["train/step_outcome"] == "accepted"
    assert "train/kl_divergence_loss" in model.logger.name_to_value
    for name, value in REFUSED.items():
        setattr(model, name, value)
    model.learn(64, log_interval=100)
    assert model.logger.name_to_value["train/is_line_search_success"] == 0.0
    assert "train/kl_divergence_loss" not in model.logger.name_to_value
    model.dump_logs()


def test_zero_gradient_is_told():
    class NoAdvantage(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.model.rollout_buffer.advantages[:] = 0.0

    model = MiniTRPO("MlpPolicy", reach(), **SMALL)
    model.learn(64, NoAdvantage())
    assert model.logger.name_to_value["train/step_outcome"] == "gradient is zero"
    assert "train/kl_divergence_loss" not in model.logger.name_to_value


def test_tensorboard_log_is_an_argument(tmp_path):
    MiniTRPO("MlpPolicy", reach(), **SMALL, tensorboard_log=str(tmp_path), target_kl=0.01).learn(3 * 64)
    MiniTRPO("MlpPolicy", reach(), **SMALL, tensorboard_log=str(tmp_path)).learn(3 * 64, tb_log_name="second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MiniTRPO_1", "second_1"]
    curve = tensorboard_values(tmp_path / "MiniTRPO_1")["train/kl_divergence_loss"]
    assert [step for step, _ in curve] == [128, 192]  # the numbers of an update come out after the next rollout
    assert all(0.0 < kl <= 0.01 for _, kl in curve)


def test_printed_table_has_no_two_keys_that_collide(capsys):
    """SB3 cuts keys to 36 characters in its table, and refuses two that are then the same."""
    MiniTRPO("MlpPolicy", reach(), **SMALL, verbose=1).learn(2 * 64)
    printed = capsys.readouterr().out
    assert all(key.removeprefix("train/") in printed for key in OUR_KEYS)
