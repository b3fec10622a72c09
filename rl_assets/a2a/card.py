"""The agent card: what this server is, in the terms of A2A 0.3."""

from __future__ import annotations

from importlib.metadata import version

from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentExtension,
    AgentSkill,
    HTTPAuthSecurityScheme,
    SecurityScheme,
    TransportProtocol,
)

from rl_assets.a2a.operations import JOIN, OPERATIONS

EXTENSION = "urn:rl-assets:a2a:market:1"
"""How a client knows that a server has sessions, a clock and the operations of `operations`."""

_SKILLS = (
    (
        "session-clock",
        "Session and clock",
        "Join for a token; then decide once per tick and advance, until the market closes.",
        ('{"operation":"join","params":{"agent":"my-agent"}}', '{"operation":"advance","params":{}}'),
    ),
    (
        "prediction-markets",
        "Prediction markets",
        "List markets, buy and sell YES and NO shares.",
        ('{"operation":"buyShares","params":{"marketId":"A","outcome":"YES","amount":50}}',),
    ),
    (
        "perpetual-futures",
        "Perpetual futures",
        "List perpetuals, open and close leveraged positions.",
        ('{"operation":"openPosition","params":{"ticker":"P","side":"LONG","amount":50}}',),
    ),
    (
        "social-feed",
        "Feed and chats",
        "Read what sources post; join chats and sway the crowd, where a world has them.",
        ('{"operation":"getFeed","params":{"limit":20}}', '{"operation":"getChats","params":{}}'),
    ),
    (
        "portfolio-balance",
        "Portfolio",
        "Balance, positions and profit.",
        ('{"action":"getPortfolio"}', '{"action":"get_positions","params":{}}'),
    ),
)


def agent_card(url: str) -> AgentCard:
    """url: where requests go."""
    token = HTTPAuthSecurityScheme(scheme="bearer", description="The token that join gives; every other call needs it.")
    return AgentCard(
        name="rl-assets market",
        description=(
            "A benchmark market day for trading agents. Send commands as JSON, in a data part or a text part: "
            '{"operation": name, "params": {...}} or {"action": name, ...}. One order per tick; one that is refused '
            "is not placed and costs nothing."
        ),
        url=url,
        version=version("rl-assets"),
        preferred_transport=TransportProtocol.jsonrpc,
        default_input_modes=["application/json", "text/plain"],
        default_output_modes=["application/json"],
        capabilities=AgentCapabilities(
            streaming=True,
            push_notifications=False,
            state_transition_history=False,
            extensions=[AgentExtension(uri=EXTENSION, params={"operations": [JOIN, *OPERATIONS]})],
        ),
        security_schemes={"session": SecurityScheme(root=token)},
        security=[{"session": []}, {}],
        skills=[
            AgentSkill(id=identity, name=name, description=text, tags=["market"], examples=list(examples))
            for identity, name, text, examples in _SKILLS
        ],
    )
