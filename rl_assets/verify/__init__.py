"""`rl-assets verify`: is everything as it should be? Each fault comes with what to do about it."""
