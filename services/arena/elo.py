"""Elo ratings. Source: Arpad Elo, "The Rating of Chessplayers", 1978."""

START = 1200.0
"""Rating of a player who has not played."""
K = 32.0
"""Most that one game can change."""


def rated(rating: float, opponent: float, score: float) -> float:
    """The rating after one game against `opponent`; score is 1.0 for a win, 0.0 for a loss."""
    expected: float = 1.0 / (1.0 + 10.0 ** ((opponent - rating) / 400.0))
    return rating + K * (score - expected)
