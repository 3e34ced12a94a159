"""Balance: which shard of an encoder takes which image, tubelet or clip, so that all have about the same to do."""

from hetjax.data.balance.assign import Assignment, Items, Rooms, assign, imbalance

__all__ = ["Assignment", "Items", "Rooms", "assign", "imbalance"]
