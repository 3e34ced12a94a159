"""The errors a user can cause: each message names the culprit, the values and the fix.

`train.py` and the `hetjax` tools print the message of any `HetjaxError` alone, without a
traceback, and exit with code 2. Anything else that escapes is a bug of ours.
"""


class HetjaxError(ValueError):
    """Base of every error whose cause is the user's input."""


class ConfigError(HetjaxError):
    """A setting is unknown, or settings contradict each other."""


class GraphError(HetjaxError):
    """A module, port or edge of the module graph does not exist or does not fit."""


class BatchError(HetjaxError):
    """A batch lacks an input, or its shape does not fit the layout."""


class StateError(HetjaxError):
    """A training state was consumed already, or is of another trainer."""


class DivergenceError(HetjaxError):
    """The loss or the gradient is no finite number any more."""


class BoundaryError(HetjaxError):
    """A tensor cannot be converted between two shardings."""


class ScheduleError(HetjaxError):
    """A schedule is unknown or would not run to its end."""


class DataError(HetjaxError):
    """A dataset, sample, image or tokenizer file is missing or malformed."""


class CheckpointError(HetjaxError):
    """A checkpoint is missing, of another model, or cannot be written."""


class CallbackError(HetjaxError):
    """A function that a program gave to a run raised an exception; its cause is that exception."""


class RunFolderError(HetjaxError):
    """The folder of a run belongs to another job, or is gone."""


class ClusterError(HetjaxError):
    """The processes of a job cannot find each other, or do not run the same."""
