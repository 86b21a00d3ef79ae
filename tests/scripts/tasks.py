"""A task for ``--env tests.scripts.tasks:Counted-v0`` that can end the process it runs in."""

import os
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

LAST_STEP = 5500


class Counted(CartPoleEnv):
    """
    CartPole that keeps, in the folder COUNTS, how many steps it took on this rank since torchrun started it; on rank 1 it
    fails at one of them, the first time, in the way that FAILURE says.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rank, self.attempt = (os.environ.get(name, "0") for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"))
        self.taken = 0

    def step(self, action):
        if self.taken == 0:  # here and not earlier: of two environments of one process, the one stepped last counts
            path = Path(os.environ["COUNTS"], f"{self.attempt}_{self.rank}")
            self.count = np.memmap(path, dtype=np.int64, mode="w+", shape=1)  # what is written stays if the process is killed
        self.taken += 1
        self.count[0] = self.taken
        if (self.rank, self.attempt, self.taken) == ("1", "0", LAST_STEP):
            fail(os.environ.get("FAILURE"))
        return super().step(action)


def fail(how: str | None) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raises":
        raise OSError("the simulator is gone")


gym.register("Counted-v0", entry_point=Counted, max_episode_steps=500)
