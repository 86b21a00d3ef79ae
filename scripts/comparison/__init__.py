"""
Learning curves of several algorithms, compared.

``settings`` plans runs, ``schedule`` has them done by processes of ``runs``, ``records`` keeps what they gave;
``summary`` turns records into numbers by ``curves`` and ``statistics``, and ``report`` and ``pictures`` show them.
"""
