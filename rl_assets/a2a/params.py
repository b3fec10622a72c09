"""The parameters that operations take, checked: names, types and bounds, before anything is done with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rl_assets.a2a.session import Refused
from rl_assets.text import printable

Name = Annotated[str, Field(max_length=40)]
Dollars = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False, strict=True)]
_upper = BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value)
Side = Annotated[Literal["YES", "NO"], _upper]
Direction = Annotated[Literal["LONG", "SHORT"], _upper]
MOST_POSTS = 100


class Params(BaseModel):
    """Parameters by name; one that the operation does not have is an error, not a wish unheard."""

    model_config = ConfigDict(extra="forbid")


class NoParams(Params):
    pass


class Status(Params):
    """status: `active` or `resolved`; every market of this world is active until it closes."""

    status: Literal["active", "resolved"] = "active"


class BuyShares(Params):
    """amount: dollars to spend, the fee included."""

    marketId: Name
    outcome: Side
    amount: Dollars


class SellShares(Params):
    """shares: how many. positionId, or marketId and, where both sides are held, outcome."""

    shares: Dollars
    marketId: Name | None = None
    positionId: Name | None = None
    outcome: Side | None = None


class OpenPosition(Params):
    """amount (or size): dollars of margin. leverage: the world's own, or left out."""

    ticker: Name
    side: Direction
    amount: Dollars | None = None
    size: Dollars | None = None
    leverage: float | None = None


class ClosePosition(Params):
    positionId: Name


class GetFeed(Params):
    limit: int = Field(default=20, ge=1, le=MOST_POSTS)
    offset: int = Field(default=0, ge=0, le=1_000_000)


class CreatePost(Params):
    content: str = Field(min_length=1, max_length=5000)
    marketId: Name | None = None
    type: Literal["post", "article"] = "post"


class JoinGroup(Params):
    groupId: Name


class Advance(Params):
    """tick: the tick that the caller decides; if it is over already, nothing happens. wait: seconds to wait for other
    agents of the same clock."""

    tick: int | None = Field(default=None, ge=1)
    wait: float = Field(default=3.0, ge=0.0, le=60.0)


P = TypeVar("P", bound=Params)


def parse(model: type[P], params: dict[str, Any]) -> P:
    """Checked parameters. Raises Refused that names each fault."""
    try:
        return model.model_validate(params)
    except ValidationError as error:
        faults = [f"{printable('.'.join(map(str, e['loc'])))}: {e['msg']}" for e in error.errors()[:5]]
        known = ", ".join(model.model_fields) or "none"
        raise Refused(f"parameters are wrong ({'; '.join(faults)}); this operation takes: {known}") from error
