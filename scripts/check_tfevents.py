"""Reads event files with TensorBoard and prints their scalars.

python scripts/check_tfevents.py DIR
"""

import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

accumulator = EventAccumulator(sys.argv[1])
accumulator.Reload()
for tag in accumulator.Tags()["scalars"]:
    for event in accumulator.Scalars(tag):
        print(f"{tag} step {event.step} value {event.value:g} wall_time {event.wall_time}")
