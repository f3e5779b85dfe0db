"""A recipe: everything that adapts a model for one row of a result table.

Attention policy, way of prompting and decoding settings, in one frozen value. Its hash names the row in every record,
so that a renamed recipe keeps its results and an altered one never inherits them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from swaa.errors import invalid
from swaa.policies import AttentionPolicy, parse_policy, policy_to_dict
from swaa.reading import build, check_choice, check_mapping, check_number, check_text, check_whole, within

PROMPTINGS = ("direct",)
"""Ways of asking. ``direct``: the chat template, the question, and the beginning of the answer."""


@dataclass(frozen=True)
class Decoding:
    """How answer tokens are chosen.

    Attributes:
        max_new_tokens: at most so many tokens are generated for an answer (>= 1).
        temperature: 0 is greedy; otherwise logits are divided by it and a token is drawn.
        top_p: draw only from the fewest tokens whose probabilities reach this sum, in (0, 1]; 1 is all tokens.
        seed: of the draws. Each sample has a random stream of its own, made from this seed and the sample's identity,
            so that neither the batch nor an interruption changes what is drawn.
        stop: generation of a sample ends once its text holds one of these strings; the text is kept as it came.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_whole("Decoding.max_new_tokens", self.max_new_tokens, minimum=1)
        temperature = check_number("Decoding.temperature", self.temperature, low=0, high=100)
        top_p = check_number("Decoding.top_p", self.top_p, low=0, high=1, open_low=True)
        check_whole("Decoding.seed", self.seed, minimum=0)
        stop = self.stop
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
            raise invalid("Decoding.stop", accepted="a list of non-empty strings", got=stop, mend="Write ['\\n'].")
        object.__setattr__(self, "temperature", temperature)  # 0 and 0.0 are one value, so one hash
        object.__setattr__(self, "top_p", top_p)
        object.__setattr__(self, "stop", tuple(stop))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON and YAML."""
        return {**dataclasses.asdict(self), "stop": list(self.stop)}


@dataclass(frozen=True)
class Recipe:
    """A named way of adapting a model.

    Attributes:
        name: the row's name in tables. It does not enter the hash.
        policy: which earlier tokens a query may attend to. A string or mapping is parsed by ``parse_policy``.
        prompting: one of ``PROMPTINGS``.
        decoding: how answer tokens are chosen.
    """

    name: str
    policy: AttentionPolicy
    prompting: str = "direct"
    decoding: Decoding = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        check_text("Recipe.name", self.name)
        with within("Recipe.policy"):
            object.__setattr__(self, "policy", parse_policy(self.policy))
        check_choice("Recipe.prompting", self.prompting, PROMPTINGS)

    @property
    def hash(self) -> str:
        """SHA-256 of everything but the name, in hexadecimal; equal policies hash equal however they are written."""
        content = {key: value for key, value in self.to_dict().items() if key != "name"}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON and YAML; :meth:`from_dict` reads them back."""
        return {
            "name": self.name,
            "policy": policy_to_dict(self.policy),
            "prompting": self.prompting,
            "decoding": self.decoding.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: object, *, path: str = "recipe", decoding: Decoding | None = None) -> Recipe:
        """The recipe that a mapping describes.

        Args:
            values: the fields above; ``decoding`` may be partial.
            path: where the mapping stands in the file, for error messages.
            decoding: what a field of ``decoding`` is where the mapping does not say (default: ``Decoding()``).

        Raises:
            UserError: an unknown, missing or wrong field, named by its dotted path.
        """
        mapping = dict(check_mapping(path, values))
        base = (decoding or Decoding()).to_dict()
        own: Mapping[str, object] = check_mapping(f"{path}.decoding", mapping.get("decoding", {}))
        mapping["decoding"] = build(Decoding, {**base, **own}, f"{path}.decoding")
        return build(cls, mapping, path)
