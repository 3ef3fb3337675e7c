"""How many replicas a Ray Serve deployment of sequences has. Ray pickles this module by value, so it imports little."""

import math


class BySequences:
    """A policy of Ray Serve's autoscaling: as many replicas as the live sequences need.

    Args:
        target: The live sequences that a replica is to have.
    """

    def __init__(self, target):
        self.target = target

    def __call__(self, context):
        """Return (number of replicas, state for the next call), from what `record_autoscaling_stats` of each gave."""
        live = sum((context.aggregated_metrics or {}).get("sequences", {}).values())
        wanted = math.ceil(live / self.target)
        return max(context.capacity_adjusted_min_replicas, min(context.capacity_adjusted_max_replicas, wanted)), {}
