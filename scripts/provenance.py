"""Where a measurement comes from: versions, machine, commit, command."""

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch as th

PACKAGES = ("sb3_minitrpo", "sb3_contrib", "stable_baselines3", "rl_zoo3", "torch", "gymnasium", "mujoco", "numpy", "scipy")


def provenance() -> dict[str, Any]:
    """All of it, as a record on disk keeps it."""
    return {
        "commit": git_commit(),
        "versions": versions(),
        "machine": machine(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def told(commands: Iterable[str], origin: dict[str, Any], threads: str) -> str:
    """
    A sentence for a report.

    :param commands: what the measurements were made by; each is named once
    :param origin: what :func:`provenance` gave for one of them
    :param threads: how many there were for what
    """
    machine = origin["machine"]
    return (
        f"{', '.join(f'`{command}`' for command in dict.fromkeys(commands))} at commit {origin['commit']}, "
        f"{origin['finished']}, on {machine['cpu']} ({machine['cores']} cores, {threads}, {machine['system']}) with "
        f"{', '.join(f'{name} {version}' for name, version in origin['versions'].items())}."
    )


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide what a run gives."""
    return {"python": platform.python_version()} | {name: installed_version(name) for name in PACKAGES}


def installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str | int]:
    """The processor, how many cores this process may use, and how many threads torch does use."""
    return {
        "cpu": cpu_model(),
        "cores": available_cores(),
        "torch_threads": th.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit() -> str:
    """The commit of this checkout, with ``-dirty`` behind it if files were changed since."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        answer = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def command_line() -> str:
    """The command that started this process, as one would type it."""
    return shlex.join(["python", *sys.argv])
