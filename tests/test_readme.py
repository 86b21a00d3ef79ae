"""What the README prints, runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run_as_printed(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


def test_files_that_are_linked_to_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_logged_key_is_explained():
    """Read off a training, so that a key that is added must be explained too."""
    from stable_baselines3.common.logger import configure

    from sb3_minitrpo import MiniTRPO

    model = MiniTRPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=64, target_kl=lambda _: 0.01)
    model.set_logger(configure(format_strings=[]))
    model._setup_learn(64)
    callback = model._init_callback(None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    model.train()
    keys = {key.removeprefix("train/") for key in model.logger.name_to_value if key.startswith("train/")}
    table = README.split("## What the log says")[1].split("\n## ")[0]
    first_column = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", first_column)) == keys
