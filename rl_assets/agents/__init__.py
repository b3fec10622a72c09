"""Who plays: reference agents, policies with tokens, the runner that lets them, and the prompt they all read."""
