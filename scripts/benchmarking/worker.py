"""
Makes one measurement: calls the function that standard input names, and writes what it gives to standard output.

    echo '["benchmarking.learning:measure", {"case": "CartPole-v1", ...}]' | python -m benchmarking.worker
"""

import contextlib
import importlib
import json
import sys

from provenance import provenance


def main() -> None:
    function, arguments = json.load(sys.stdin)
    module, _, name = function.partition(":")
    with contextlib.redirect_stdout(sys.stderr):
        result = getattr(importlib.import_module(module), name)(**arguments)
    print(json.dumps({"result": result, "provenance": provenance()}, allow_nan=False))


if __name__ == "__main__":
    main()
