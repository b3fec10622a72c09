"""The assets, one module per group, in the order in which data flows. Read from snapshots to deployments.

Each asset reads its configuration, calls a domain package, writes files or rows, and says what it did in metadata.
"""

import warnings

from dagster import BetaWarning

# Dagster is held to one minor version; each process would say this once per asset.
warnings.filterwarnings("ignore", "Parameter `backfill_policy`", BetaWarning)
