"""What a reader is shown for a key: a method, a metric, a column or a table's row. No title is ever looked up."""

from collections.abc import Mapping

import pandas as pd

from pdlib.methods import METHODS, RULES

Row = Mapping[str, object]
ROW_KEY = ("method", "start", "rule", "calls", "t_prime", "t_stop")  # what tells the rows of a table apart
NAMES = {
    **{name: method.title for name, method in METHODS.items()},
    "rater": "A rater",
    "dice": "Dice",
    "in_lesions": "Mean in lesions",
    "overlap": "Overlap",
    "jaccard": "Jaccard",
    "hd95": "HD95",
    "hd95_mm": "HD95 (mm)",
    "hd95_voxel": "HD95 (voxels)",
    "f1": "F1",
    "lesion_recall": "Lesion recall",
    "lesion_precision": "Lesion precision",
    "lesion_f1": "Lesion F1",
    "avd_percent": "AVD (%)",
    "uncertainty": "Uncertainty (variance)",
    "entropy": "Entropy (nat)",
    "energy_distance": "Energy distance to the raters",
    "energy_distance_difference": "Δ energy distance",
    "energy_distance_holm": "p (Holm)",
    "rater_dice": "Dice with a rater",
    "risk_area": "Area under the risk",
    "calibration_error": "Calibration error",
    "method": "Method",
    "start": "Pre-segmentation",
    "step": "Training step",
    "validation_dice": "Validation Dice",
    "preseg_dice": "Pre-segmentation Dice",
    "dice_difference": "Δ Dice",
    "dice_difference_median": "Median Δ",
    "dice_difference_missed": "Δ where the start finds no lesion",
    "dice_difference_rest": "Δ elsewhere",
    "dice_holm": "p (Holm)",
    "dice_disc": "Dice, disc",
    "dice_disc_difference": "Δ Dice, disc",
    "dice_disc_holm": "p (Holm)",
    "dice_cup": "Dice, cup",
    "like_its_start": "Dice with its start",
    "nfe": "Calls",
    "seconds": "Seconds",
    "train_loss": "Training loss",
    "explained": "Share of variance explained",
    "reconstruction_loss": "Reconstruction loss",
    "kl_loss": "KL loss",
    "cross_entropy_loss": "Cross-entropy",
    "dice_loss": "Dice loss",
    "g_loss": "Generator loss",
    "d_loss": "Discriminator loss",
    "vlb_loss": "Variational bound",
    "number": "Claim",
    "claim": "What is claimed",
    "estimate": "Difference",
    "corrected_p": "p (Holm)",
    "gain_p": "p, gain",
    "verdict": "Verdict",
    "decides_at": "Subjects that would decide",
    "shown": "Shown in",
    "system": "System",
    "setting": "Setting",
    "milliseconds": "Milliseconds",
    "faster": "Times as fast",
    "error": "Error",
    "share_of_matmul": "Of the bfloat16 matmul rate",
    "subject": "Case",
    "lesion_ml": "Lesions (ml)",
    "reference_ml": "The expert's (ml)",
    "predicted_dice": "Predicted Dice",
    "peak_memory_mb": "Memory (MB)",
}


def display_name(key: str) -> str:
    """What a reader is shown for a method, a metric or a column; the key itself where it has no other name."""
    return NAMES.get(key, str(key))


def row_key(row: Row) -> tuple:
    """The values that a row names, in the order of ROW_KEY; None where it names none.

    ValueError: a column that tells no rows apart.
    """
    if unknown := [column for column in row if column not in ROW_KEY]:
        raise ValueError(f"{unknown[0]}: a row is told apart by {', '.join(ROW_KEY)}")
    return tuple(value if _says(value := row.get(column)) else None for column in ROW_KEY)


def row_title(row: Row) -> str:
    """What a reader is shown for a row: what it names of ROW_KEY, and no more. "PD-DDPM, DPM-Solver++, 10 calls"."""
    method, start, rule, calls, t_prime, t_stop = row_key({column: row[column] for column in ROW_KEY if column in row})
    every = rule == "ddpm" and calls is not None and calls == t_prime
    parts = [display_name(method or "") + (f" from {start_title(start)}" if start else "")]
    if rule and rule != method:
        parts.append("every step" if every else rule_title(rule))
    if calls is not None and not every and rule != "x0_jump":
        parts.append(f"{int(calls)} call{'s' if calls > 1 else ''}")
    if t_prime is not None and not every:
        parts.append(f"T' = {int(t_prime)}")
    if t_stop is not None:
        parts.append(f"t_stop = {int(t_stop)}")
    return ", ".join(part for part in parts if part).strip()


def rule_title(rule: str) -> str:
    """What a reader is shown for a value of the column `rule`."""
    return RULES[rule].title if rule in RULES else display_name(rule)


def start_title(start: str) -> str:
    """What a reader is shown for a value of the column `start`."""
    return start.replace("_", " ")


def _says(value: object) -> bool:
    """Whether a cell holds something: a table that was read from CSV has NaN where a row names nothing."""
    return not (value is None or pd.isna(value) or value == "")
