"""The market over A2A, the agent-to-agent protocol: a server that many agents play at, and a client that plays one."""
