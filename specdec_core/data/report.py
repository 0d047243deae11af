"""What became of the data, in figures and in a paragraph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataReport:
    """Counts of one split, after truncation.

    conversations  read, checked and used
    sequences      token sequences made of them: more than conversations if the template rewrites earlier turns
    tokens         in all sequences
    supervised     tokens that are learned
    stop_tokens    of these, stop tokens
    truncated      sequences cut at data.max_length
    dropped        sequences left out because nothing supervised was left in them
    rows           rows that the sequences were packed into
    max_length     most tokens of a row
    media          images and videos in the sequences
    left_out       conversations beyond data.max_tokens
    skipped        lines left out, by reason
    """

    conversations: int
    sequences: int
    tokens: int
    supervised: int
    stop_tokens: int
    truncated: int
    dropped: int
    rows: int
    max_length: int
    media: int = 0
    left_out: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """One paragraph for people."""
        sentences = [
            f"{_count(self.conversations, 'conversation')} gave {_count(self.sequences, 'sequence')} of "
            f"{_count(self.tokens, 'token')}, {self.supervised:,} of them supervised "
            f"({_count(self.stop_tokens, 'stop token')})",
        ]
        if self.media:
            sentences.append(f"{_count(self.media, 'image')} or videos in them")
        if self.rows < self.sequences:
            empty = 1 - self.tokens / (self.rows * self.max_length)
            sentences.append(
                f"packed into {_count(self.rows, 'row')} of {self.max_length:,}, {empty:.1%} of them empty"
            )
        if self.truncated:
            sentences.append(f"{_count(self.truncated, 'sequence')} cut at data.max_length")
        if self.dropped:
            sentences.append(f"{_count(self.dropped, 'sequence')} dropped with no supervised token left")
        if self.left_out:
            sentences.append(f"{_count(self.left_out, 'conversation')} left out beyond data.max_tokens")
        if self.skipped:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(self.skipped.items()))
            sentences.append(f"{_count(sum(self.skipped.values()), 'line')} skipped ({reasons})")
        if not self.stop_tokens:
            sentences.append("no stop token is supervised, so the draft will not learn where answers end")
        return "; ".join(sentences) + "."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
