"""Stays from before the base: two generators with one seed, of which one begins anew with every machine.

/run/seeded has a number that each of them drew in this machine, and how often it was told to begin anew.
"""

import json
import os
import random
import signal

seed = os.urandom(32)
anew, stale = random.Random(seed), random.Random(seed)
told = 0


def reseed(*_):
    global told
    told += 1
    anew.seed(os.urandom(32))
    with open("/run/seeded.new", "w") as file:
        json.dump({"anew": anew.getrandbits(128), "stale": stale.getrandbits(128), "told": told}, file)
    os.rename("/run/seeded.new", "/run/seeded")


signal.signal(signal.SIGUSR1, reseed)
if os.fork():
    os._exit(0)
os.setsid()
while True:
    signal.pause()
