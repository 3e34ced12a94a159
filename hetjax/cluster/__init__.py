"""A job of several processes: how they find each other, agree, watch each other and stop together."""

from hetjax.cluster.agree import check_agreement
from hetjax.cluster.agreed_stop import AgreedStop
from hetjax.cluster.connect import connect, disconnect
from hetjax.cluster.environment import Environment, find_environment
from hetjax.cluster.exit_codes import PEER_LOST
from hetjax.cluster.launch import launch_processes
from hetjax.cluster.watchdog import Watch

__all__ = [
    "PEER_LOST",
    "AgreedStop",
    "Environment",
    "Watch",
    "check_agreement",
    "connect",
    "disconnect",
    "find_environment",
    "launch_processes",
]
