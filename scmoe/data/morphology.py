"""Simulated geometry of reconstructed neurons, for the Patch-seq stand-in."""

from collections.abc import Callable

import numpy as np

NEURITES = ("all_neurites", "dendrite", "basal_dendrite", "axon")
PARTS = ("bifurcation", "tip", "node", "compartment")
AXES = {"x": "width", "y": "height", "z": "depth"}
Mix = Callable[[float], np.ndarray]  # noise -> one standardised quantity per cell


def simulate_morphology(
    shape: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Simulate 514 morphological features that follow from a few sizes and positions.

    Features are redundant as they are in reconstructions: widths are differences of extremes,
    variances are squared deviations, surface and volume follow from length and diameter, a basal
    dendrite hardly differs from the dendrite, and the overlap of a neurite with itself is
    constant.

    Parameters
    ----------
    shape
        ``(cells, k)``: latent quantities of the cells that their geometry depends on.
    rng
        Source of weights and noise.

    Returns
    -------
    Features ``(cells, 514)``, in micrometres and their powers, radians or shares; and their names.
    """

    def mix(noise: float) -> np.ndarray:
        weights = rng.normal(size=shape.shape[1]) * (rng.random(shape.shape[1]) < 0.2)
        return standardised(standardised(shape @ weights) + noise * rng.normal(size=len(shape)))

    features: dict[str, np.ndarray] = {}
    for neurite in NEURITES:
        reach = 120 if "dendrite" in neurite else 280  # micrometres
        if neurite != "basal_dendrite":
            clouds = {
                (part, axis): (mix(0.5), mix(0.8), mix(0.7)) for part in PARTS for axis in AXES
            }
        for (part, axis), cloud in clouds.items():
            # The basal part is most of the dendrite: same latent quantities, little noise.
            spread, skew, centre = (c + 0.1 * rng.normal(size=len(shape)) for c in cloud)
            sd = reach * (0.15 if axis == "z" else 0.5) * np.exp(0.35 * spread)
            moments = _point_cloud(axis, sd, 0.6 * skew, 0.4 * sd * centre, rng)
            features |= {f"{neurite}.{part}.{name}": value for name, value in moments.items()}
        tree = _tree(reach, mix, rng)
        features |= {f"{neurite}.{name}": value for name, value in tree.items()}
    features |= _overlaps(mix, rng)
    levels = {"max_path_distance": 6.0, "early_branch_path": -1.0, "mean_contraction": -0.15}
    features |= {name: np.exp(level + 0.1 * mix(0.7)) for name, level in levels.items()}
    return np.column_stack(list(features.values())).astype(np.float32), list(features)


def standardised(x: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the cells; a constant becomes zero."""
    sd = x.std(0)
    return (x - x.mean(0)) / np.where(sd > 0, sd, 1)


def _point_cloud(
    axis: str, sd: np.ndarray, skew: np.ndarray, mean: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Extent and moments of a neurite's points along one axis."""
    low, high = mean - sd * np.exp(0.7 - 0.2 * skew), mean + sd * np.exp(0.7 + 0.2 * skew)
    return {
        f"dimension_{AXES[axis]}": high - low,
        f"dimension_min__{axis}": low,
        f"dimension_max__{axis}": high,
        f"dimension_bias__{axis}": np.abs(high) - np.abs(low),
        f"moments_mean_{axis}": mean,
        f"moments_std_{axis}": sd,
        f"moments_var_{axis}": sd**2,
        f"moments_skew_{axis}": skew,
        f"moments_kurt_{axis}": skew**2 + rng.normal(0, 0.6, len(sd)),
    }


def _tree(reach: float, mix: Mix, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Branching, length and calibre of one neurite."""
    branches = np.round(np.exp(3.2 + 0.4 * mix(0.4)) * (4 if reach > 200 else 1)) + 2
    length = 0.3 * branches * reach * np.exp(0.15 * mix(0.5))
    diameter = np.exp(-1.0 + 0.2 * mix(0.8))
    return {
        "num_branches": branches,
        "num_tips": np.ceil(branches / 2),
        "num_nodes": np.round(length * 1.4),
        "num_outer_bifurcations": rng.binomial(branches.astype(int), 0.2),
        "max_branch_order": np.round(3 * np.log(branches) + mix(0.5)),
        "mean_bifurcation_angle_local": 1.2 + 0.1 * mix(1.0),
        "mean_bifurcation_angle_remote": 1.1 + 0.1 * mix(1.0),
        "mean_parent_daughter_ratio": 0.9 + 0.02 * mix(1.5),
        "mean_diameter": diameter,
        "total_length": length,
        "total_surface_area": np.pi * diameter * length,
        "total_volume": np.pi * diameter**2 / 4 * length,
        "max_euclidean_distance": reach * np.exp(0.7 + 0.25 * mix(0.4)),
    }


def _overlaps(mix: Mix, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """How much of one neurite lies above, beside and below another.

    A neurite overlaps itself in every cell; dendrite and basal dendrite overlap in all but the
    few cells with an apical dendrite.
    """
    n_cells = len(mix(0.0))
    features = {}
    for one in NEURITES[1:]:
        for other in NEURITES[1:]:
            if "axon" in (one, other) and one != other:
                above, below = (np.clip(0.3 + 0.3 * mix(0.6), 0, 0.5) for _ in range(2))
            else:
                apical = np.float64(rng.random(n_cells) < 0.01) if one != other else 0.0
                above, below = apical * np.full(n_cells, 0.2), np.zeros(n_cells)
            shares = {"above": above, "overlap": 1 - above - below, "below": below}
            features |= {f"{one}.{other}.overlap_{name}": value for name, value in shares.items()}
    return features
