"""Times of an attempt's end, in one place since each is chosen against the others.

A pod is given drainSeconds and a grace beyond it; an attempt that leaves is waited for a little longer than that, and
then let go, whoever has not acted: nothing is waited for for ever.
"""

from __future__ import annotations

GRACE_SECONDS = 30
"""What pods get beyond drainSeconds before they are killed."""

SAMPLER_GRACE_SECONDS = 30
"""What samplers get: they have nothing to save."""

LEAVE_SECONDS = 2 * GRACE_SECONDS
"""What a leaving attempt's RayJob and pods get beyond drainSeconds before the run goes on without them."""

END_SECONDS = GRACE_SECONDS
"""What pods of an attempt that is over get to end, as after drainSeconds: a trainer writes its exit record first, and
then metrics and samples. One that has left holds up nobody: its pods end by themselves in seconds."""

POST_MORTEM_SECONDS = 30.0
"""What saving a failed attempt's log, events and pods may take before its cluster goes all the same."""

DEAF_SECONDS = 20.0
"""A trainer that reports every 5 s and was not heard for so long after it was asked to drain has not been told. Its
hook then has it save within drainSeconds, for which its pods have time: what it lacks of that END_SECONDS makes up."""

POLL_SECONDS = 5.0
"""Time to the next look while something else has to act."""

CONFLICT_SECONDS = 30.0
"""Time to the next look while a person has to act."""

RECHECK_SECONDS = 15.0
"""Time to the next look at a Secret, a bucket or a pool that was not as it should be: at first."""

LONGEST_RECHECK_SECONDS = 120.0
"""And once it has not been for long: a thousand runs that nobody mends must not ask their buckets all the time."""
