"""One attempt from its config to its exit record. `runner` creates attempts, `attempt` runs one.

`startup` and `judgeable` find what cannot work before anything is sampled. `sinks` holds the sinks that an attempt
reports to, `exit_records` maps its end to an exit code, `drain` tells a running attempt to stop, and `driverlog` saves
the end of its output.
"""
