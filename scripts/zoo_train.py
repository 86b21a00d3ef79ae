"""
Train with the RL Zoo: its ``train`` command, for MiniTRPO.

    python scripts/zoo_train.py --env HalfCheetah-v5
    python scripts/zoo_train.py --env CartPole-v1 -optimize --n-trials 50

``--algo`` is ``minitrpo`` unless given; ``--help`` lists the zoo's arguments. Models and logs go to ``logs/minitrpo/``.
"""

import sys

from sb3_minitrpo.zoo import run

if __name__ == "__main__":
    run("train", sys.argv[1:])
