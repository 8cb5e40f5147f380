"""Judging of programs: one client for all back ends, and a transport for each.

The rest of the trainer uses only `backend.Judge`. `client` is the only place that decides what a failure means. It asks
`servers` (a pool's pods, or the trainer's own server) or `together` (a hosted interpreter).
"""
