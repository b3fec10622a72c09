"""The three ways in which assets are cut: by snapshot, by hour and by training batch."""

import dagster as dg

FIRST_WINDOW = "2025-01-01T00:00"

SNAPSHOTS = dg.DynamicPartitionsDefinition(name="snapshots")
"""One partition per benchmark snapshot. Keys are registered in sorted order, because a range follows that order."""

HOURS = dg.HourlyPartitionsDefinition(start_date=FIRST_WINDOW, fmt="%Y-%m-%dT%H:00", timezone="UTC", end_offset=1)
"""One partition per hourly window in UTC; the running hour is one too, so that complete groups need not wait."""

BATCHES = dg.DynamicPartitionsDefinition(name="batches")
"""One partition per claimed training batch."""

EVERYTHING = dg.AllPartitionMapping()
"""For an asset that may read any partition of its upstream."""
