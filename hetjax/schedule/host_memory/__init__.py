"""Copies to the memory of the host and back, added to any finished schedule: which, and when.

`idle_times` finds what waits and for how long, `offload` adds the copies. What they are as actions, and how they are
checked and simulated, stands with the other kinds in `hetjax.schedule`.
"""
