"""
Watch what ``zoo_train.py`` has trained: the RL Zoo's ``enjoy`` command, for MiniTRPO.

    python scripts/zoo_enjoy.py --env HalfCheetah-v5
    python scripts/zoo_enjoy.py --env CartPole-v1 --no-render --load-best

``--algo`` is ``minitrpo`` and ``-f`` is ``logs`` unless given; ``--help`` lists the zoo's arguments. For a video to keep,
``python -m sb3_minitrpo.zoo record_video`` takes the same ones.
"""

import sys

from sb3_minitrpo.zoo import run

if __name__ == "__main__":
    run("enjoy", sys.argv[1:])
