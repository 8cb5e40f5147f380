"""Having programs judged: one client for every back end, and what each of them is asked in its own words.

`backend.Judge` is all that the rest of the trainer knows. `client` holds the one policy of what a failure means;
`servers` (a pool's pods, or a server of the trainer's own) and `together` (a hosted interpreter) are what it asks.
"""
