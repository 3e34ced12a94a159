"""A whole training step: all its programs, and the executor that dispatches them by the schedule.

`step_programs` traces the programs of all stages, `executor` runs an action of the schedule (a microbatch's forward or
backward, a transfer, an update), `in_flight` holds what lies between actions. `action_timer` and `flops` measure.
"""
