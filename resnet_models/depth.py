"""From a paper's layer count to blocks per stage, and back to the counts that can be built."""

from __future__ import annotations

# Four stages: He et al. 2015 (arXiv:1512.03385), table 1; 200: He et al. 2016 (arXiv:1603.05027), table 5;
# 10, 14 and 26 are the customary short ones.
_FOUR_STAGES: dict[bool, dict[int, tuple[int, ...]]] = {
    False: {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)},
    True: {
        14: (1, 1, 1, 1),
        26: (2, 2, 2, 2),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
        200: (3, 24, 36, 3),
    },
}
# When neither depth nor depths is given: ResNet-18, ResNet-50; ResNet-20, ResNet-29 (bottleneck).
_USUAL_DEPTH: dict[tuple[int, bool], int] = {(4, False): 18, (4, True): 50, (3, False): 20, (3, True): 29}
_MAX_BLOCKS_PER_STAGE = 500


def depths_of(block: str, depth: int, num_stages: int) -> tuple[int, ...] | None:
    """Return blocks per stage of a network of `depth` layers, or None where the blocks cannot add up to it.

    Four stages: the papers' tables. Any other number: equal stages, as in the CIFAR networks of He et al. 2015,
    sec. 4.2: depth = layers per block x stages x n + 2 (6n+2 basic, 9n+2 bottleneck). Pre-activation basic blocks
    also take the count of Wide ResNets (arXiv:1605.07146), which adds the projections: 6n+4.
    """
    is_bottleneck = block.endswith("bottleneck")
    wanted = depth or _USUAL_DEPTH.get((num_stages, is_bottleneck), 0)
    if num_stages == 4:
        return _FOUR_STAGES[is_bottleneck].get(wanted)
    per_round = (3 if is_bottleneck else 2) * num_stages
    for extra in _extra_layers(block, num_stages):
        blocks, rest = divmod(wanted - extra, per_round)
        if rest == 0 and 1 <= blocks <= _MAX_BLOCKS_PER_STAGE:
            return (blocks,) * num_stages
    return None


def depth_choices(block: str, num_stages: int) -> list[int]:
    """Return every layer count that `depths_of` accepts, ascending."""
    is_bottleneck = block.endswith("bottleneck")
    if num_stages == 4:
        return sorted(_FOUR_STAGES[is_bottleneck])
    per_round = (3 if is_bottleneck else 2) * num_stages
    extras = _extra_layers(block, num_stages)
    return sorted(per_round * n + extra for n in range(1, _MAX_BLOCKS_PER_STAGE + 1) for extra in extras)


def nearest_depths(block: str, depth: int, num_stages: int) -> list[int]:
    """Return the buildable layer counts just below and just above `depth`, nearest first."""
    choices = depth_choices(block, num_stages)
    below = [choice for choice in choices if choice < depth][-1:]
    above = [choice for choice in choices if choice > depth][:1]
    return sorted(below + above, key=lambda choice: abs(choice - depth))


def _extra_layers(block: str, num_stages: int) -> tuple[int, ...]:
    # Stem and classifier; Wide ResNets with three stages count two strided projections as well (28 = 6x4 + 4).
    return (2, 4) if block == "preact_basic" and num_stages == 3 else (2,)
