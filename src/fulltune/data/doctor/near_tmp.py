"""shim"""

import numpy as np

from fulltune.data.doctor.near import NearFacts


class NearWriter:
    def __init__(self, folder):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *a):
        pass

    def add(self, text):
        pass


class Near:
    surplus = np.empty(0, np.int64)

    def facts(self, place, exact):
        return NearFacts(threshold=0.8, rows=0, exact=exact, affected=0, surplus=0, pairs=(), clusters=(), uncompared=0)


def near_duplicates(parts, side):
    return Near()


near_leaks = near_duplicates


def texts(folder):
    return []
