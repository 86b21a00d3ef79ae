"""
What ``scripts/benchmark.py`` is made of.

``plan`` says what is measured, ``jobs`` has it done, each measurement by a ``worker``, a process of its own, which calls
``learning`` or ``growth``. ``report`` and ``picture`` show it, with the numbers of ``statistics``.
"""
