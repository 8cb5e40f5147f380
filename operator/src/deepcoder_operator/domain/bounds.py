"""Times at the end of an attempt, in one place because each depends on the others.

A pod gets drainSeconds and a grace period beyond it. The operator waits a little longer than that for an attempt to
end, and then continues without it, so nothing waits forever.
"""

from __future__ import annotations

GRACE_SECONDS = 30
"""Time that pods get beyond drainSeconds before they are killed."""

SAMPLER_GRACE_SECONDS = 30
"""Grace period of samplers, which have nothing to save."""

LEAVE_SECONDS = 2 * GRACE_SECONDS
"""Time beyond drainSeconds that a leaving attempt's RayJob and pods get before the run continues without them."""

END_SECONDS = GRACE_SECONDS
"""Time that the pods of an attempt that is over get to end, as after drainSeconds. A trainer writes its exit record
first, then metrics and samples. Once the trainer has exited, its pods end by themselves in seconds."""

POST_MORTEM_SECONDS = 30.0
"""Longest time for saving a failed attempt's log, events and pods. After it, the cluster is deleted anyway."""

UNREACHABLE_SECONDS = 20.0
"""A trainer reports every 5 s. If it is silent for this long after a drain was requested, it has not been told. Its
preStop hook then has it save within drainSeconds; END_SECONDS makes up for the time lost."""

POLL_SECONDS = 5.0
"""Time to the next pass while another component has to act."""

CONFLICT_SECONDS = 30.0
"""Time to the next pass while a person has to act."""

RECHECK_SECONDS = 15.0
"""Time to the next check of a Secret, a bucket or a pool that was not usable, at first."""

LONGEST_RECHECK_SECONDS = 120.0
"""The same after a long time: a thousand runs that nobody fixes must not query their buckets all the time."""
