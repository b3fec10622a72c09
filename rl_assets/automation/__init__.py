"""When things run: partitions, jobs, sensors and schedules. What they decide is decided in the domain packages."""
