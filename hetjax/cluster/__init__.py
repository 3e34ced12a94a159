"""A job of several processes: how they find each other, agree, watch each other and stop together.

`launch` starts them on one machine and imports no JAX. In each of them `environment` reads its place in the job,
`connect` joins it, `agree` compares values over all, `watchdog` (with its server in process 0 and a client in each
other) ends all when one is lost, and `agreed_stop` stops all after the same step. `job` is these together, for a
training run.
"""
