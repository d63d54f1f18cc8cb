"""The same backlog, and whoever publishes it is killed (SIGKILL) past a third of it, and started again."""

import relay


def sides(postgres, scale):
    return relay.sides(postgres, scale, kill=True)
