"""What clients keep from round to round lives at the server: a checkpoint holds it, and any group may train them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedcmp.distributed.team import Team, is_server, leads
from fedcmp.federation.client import LocalStates


def hand_out(team: Team, kept: LocalStates, clients: Sequence[int], mine: frozenset[int]) -> LocalStates:
    """From the server to the groups that train the clients; one client's state is under way at a time.

    Args:
        team: the ranks.
        kept: what all clients kept, at the server.
        clients: the round's clients, the same on every rank.
        mine: the clients that this rank trains.
    """
    present = team.share([client for client in clients if client in kept] if is_server(team) else None)
    found: LocalStates = {}
    for client in present or []:
        state = team.share(kept[client] if is_server(team) else None)
        if client in mine:
            found[client] = state or {}
    return found


def bring_back(team: Team, new: LocalStates, owners: Mapping[int, int]) -> LocalStates:
    """From the groups to the server, where the result is valid; elsewhere it is empty.

    Args:
        team: the ranks.
        new: what the clients of this rank keep.
        owners: the rank that speaks for each accepted client, the same on every rank.
    """
    kept = [client for client in sorted(new) if leads(team)]
    present = {client for part in team.collect(kept) for client in part}
    found: LocalStates = {}
    for client in sorted(present & owners.keys()):
        state = team.share(new.get(client), owners[client])
        if is_server(team):
            found[client] = state or {}
    return found
