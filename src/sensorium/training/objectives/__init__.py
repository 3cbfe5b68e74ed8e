"""What a stage minimises: one objective a file, all called by one loop (`training.loop`)."""

from sensorium.training.objectives.next_token import next_token

__all__ = ["next_token"]
