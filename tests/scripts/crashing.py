"""An algorithm that cannot be trained."""

from sb3_minitrpo import MiniTRPO


class Crashing(MiniTRPO):
    def train(self) -> None:
        raise RuntimeError("this algorithm always crashes")
