"""What is asked of assets in operation: which pool a run takes a place in, and how old an asset may become.

Each pool has one place (`concurrency.pools` in dagster.yaml), and a run takes its places before it starts, so one that
is killed leaves none taken. `dagster instance concurrency set POOL LIMIT` gives a pool more.
"""

from datetime import timedelta

import dagster as dg

DATABASE = "database"
"""Bulk reads of Babylon's tables: its players come first."""
JUDGE = "judge"
"""A judge's requests per minute and at a time are counted within a run, so two runs would send twice as many."""
TRAINER = "trainer"
"""Training takes all cores or the GPU, and a model line has one batch in flight."""

HOURLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=6), warn_window=timedelta(hours=2, minutes=15))
"""An hour is read as soon as it has rows, and again five minutes after it closed. Two missing hours may be a quiet
game; six are a recorder, a sensor or a daemon that does not run."""
JUDGED = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=8), warn_window=timedelta(hours=4))
"""A judge's run may take its two hours after that."""
TRAINED = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=7), warn_window=timedelta(days=3))
"""A threshold is reached in a day where agents play all day. After a week the market has moved on without the model."""
