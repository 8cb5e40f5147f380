"""One attempt from its config to its exit record: `runner` makes attempts, `attempt` holds one together.

`starting` and `judgeable` find what cannot work before anything is sampled, `telling` is whom an attempt tells, `exits`
says what its end means, `drain` asks a running one to stop, `driverlog` saves the end of what it printed.
"""
