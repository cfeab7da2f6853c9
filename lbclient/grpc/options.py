"""The options of channels."""

from typing import Annotated

from lbclient.balancer.options import BalancerOptions, Option
from lbclient.protocol import Classifier

__all__ = ["ChannelOptions"]


class ChannelOptions(BalancerOptions, total=False):
    """The options of a channel. They are the options of its balancer."""

    judge: Annotated[
        Classifier | None,
        Option(
            "your classifier: what a response, or the `grpc.RpcError` of an attempt, means "
            "(`Verdict`). It replaces `codes`."
        ),
    ]
