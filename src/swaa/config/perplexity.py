"""What text the policies are read on, and which of its tokens need a long context."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from swaa.errors import invalid
from swaa.reading import build, check_number, check_text, check_whole


@dataclass(frozen=True)
class Perplexity:
    """Stretches of a text, on which every recipe is measured: delta-NLL and LongPPL (arXiv 2410.23771).

    A token is a key token if the unmodified model gains more than ``key_gain`` from reading the whole stretch before
    it instead of a short context, and finds it likely then: its NLL is below ``key_nll``.

    Attributes:
        num_stretches: of the text, side by side, spread evenly over it.
        length: tokens of a stretch, the BOS among them where the tokenizer begins texts with one.
        short_length: tokens of context in the short reading, at least; up to ``stride - 1`` more, see there.
        text_file: the text, in UTF-8; None is the documentation that comes with Python.
        key_gain: NLL in the short reading less NLL in the long one, in nats.
        key_nll: in nats.
    """

    num_stretches: int
    length: int
    short_length: int
    text_file: str | None = None
    key_gain: float = 2.0
    key_nll: float = 2.0

    def __post_init__(self) -> None:
        check_whole("Perplexity.num_stretches", self.num_stretches, minimum=1)
        check_whole("Perplexity.length", self.length, minimum=1)
        check_whole("Perplexity.short_length", self.short_length, minimum=1)
        if self.short_length + self.stride + 1 >= self.length:  # 1 for a BOS
            needed = self.short_length + self.stride + 2
            accepted = f"a context that is shorter than the stretch: length >= {needed} for this one"
            mend = f"Lower it, or raise length ({self.length})."
            raise invalid("Perplexity.short_length", accepted=accepted, got=self.short_length, mend=mend)
        if self.text_file is not None:
            check_text("Perplexity.text_file", self.text_file)
        for name, open_low in (("key_gain", False), ("key_nll", True)):
            number = check_number(f"Perplexity.{name}", getattr(self, name), low=0, high=100, open_low=open_low)
            object.__setattr__(self, name, number)  # 2 and 2.0 are one value

    @property
    def stride(self) -> int:
        """Tokens that share a short context, which begins ``short_length`` tokens before the first of them.

        A quarter of ``short_length``, as the paper has it (1,024 of 4,096): a context for each token would cost one
        forward pass a token.
        """
        return max(1, self.short_length // 4)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON and YAML; :meth:`from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: object, path: str = "perplexity") -> Perplexity:
        """The settings that a mapping at ``path`` of a file describes.

        Raises:
            UserError: an unknown, missing or wrong field, named by its dotted path.
        """
        return build(cls, values, path)
