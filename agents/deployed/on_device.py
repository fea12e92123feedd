"""An adaptive inference on a GPU: nothing waits for the device until all is launched; a step is one CUDA graph."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from prance_env.observations import OBSERVATIONS, is_known
from prance_env.spaces import check_actions, decode_actions, observe
from supernet import GroupChoice, InferenceState, Supernet
from supernet.arrays import Floats, sent
from supernet.runtime.choice import precision, records_graphs
from supernet.runtime.graphs import Recorder, standing, standing_net
from supernet.tiled_state import TiledState, run_tiled_group

from ..fitting import Interface
from .networks import NetworkPolicy


def played_on_device(
    net: Supernet,
    policy: NetworkPolicy,
    interface: Interface,
    full_macs: int,
    begun: InferenceState,
    price: Floats | None,
    recorder: Recorder,
) -> tuple[InferenceState, Tensor, Any]:
    """All decisions and groups after the first one.

    Args:
        net: The supernet.
        policy: On the same device.
        interface: What it sees, and may say.
        full_macs: MACs of the full network.
        begun: B images before the first decision.
        price: (B,) in [0, 1], as it is observed; None: it is not.
        recorder: Of the steps.

    Returns:
        The state after the last group, (B, T, A) actions in [0, 1], and (B, T) patches left, both on the host.

    Raises:
        ValueError: If an action holds NaN.
    """
    space, state = net.space, TiledState.of(begun, net.config)
    device, most = state.patch_token.device, state.batch.most
    shown = {} if price is None else {"price": sent(price, device)}
    chosen, left = [], []
    # Functions of users may ask the device for numbers, which a graph cannot.
    parts = OBSERVATIONS[interface.observation]
    apart = not all(is_known(part) for part in parts)

    def seen(before: TiledState, given: dict[str, Tensor]) -> Tensor:
        return observe(net, before, interface.observation, full_macs, given.get("price"))

    reads = (standing_net(net), standing(policy)) if records_graphs(device) else None
    for group in range(space.first_decided, len(space.groups)):

        def step(inputs: dict[str, Tensor], group: int = group) -> dict[str, Tensor]:
            before = TiledState.of_tensors(group, most, inputs)
            said = cast(Tensor, policy(inputs["seen"] if apart else seen(before, inputs)))
            unit = decode_actions(said, interface.normalize_actions)
            # NaN, as an index, would end the use of the device; it is refused once the host has the actions.
            choice = GroupChoice.decoded(space, unit.nan_to_num(0.0))
            after = run_tiled_group(net.config, net.blocks, before, choice)
            return after.tensors() | {"unit": unit}

        inputs = state.tensors() | shown | ({"seen": seen(state, shown)} if apart else {})
        name = (group, interface.observation, parts, precision(), reads)
        out = recorder.run(name, step, inputs) if records_graphs(device) else step(inputs)
        state = TiledState.of_tensors(group + 1, most, out)
        chosen.append(out["unit"])
        left.append(state.batch.lengths - net.config.num_prefix_tokens)
    actions = torch.stack(chosen, dim=1).cpu()
    for taken in actions.unbind(1):
        check_actions(taken.numpy())
    return state, actions, torch.stack(left, dim=1).cpu().numpy()
