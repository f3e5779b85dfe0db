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

from swaa.errors import UserError, invalid
from swaa.policies import AttentionPolicy, parse_policy, policy_to_dict
from swaa.policies.scores import Scores, parse_scores, scores_to_list
from swaa.prompting import Prompting
from swaa.reading import build, check_choice, check_mapping, check_number, check_text, check_whole, within


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
class FineTuned:
    """What tells one set of trained weights from another.

    Attributes:
        name: of the training, in the experiment's ``fine_tunings``.
        digest: of everything that the training was told, the recipe's policy excepted.
    """

    name: str
    digest: str


@dataclass(frozen=True)
class Recipe:
    """A named way of adapting a model.

    Attributes:
        name: the row's name in tables. It does not enter the hash.
        policy: which earlier tokens a query may attend to. A string or mapping is parsed by ``parse_policy``.
        prompting: how questions are asked. A string or mapping is parsed by :meth:`Prompting.parse`.
        decoding: how answer tokens are chosen.
        fine_tuning: what the weights were trained with, and None for the model as it is.
        scores: what becomes of attention scores besides; None leaves them as they are. What is no ``Scores`` is parsed
            by ``parse_scores``.
    """

    name: str
    policy: AttentionPolicy
    prompting: Prompting = field(default_factory=Prompting)
    decoding: Decoding = field(default_factory=Decoding)
    fine_tuning: FineTuned | None = None
    scores: Scores | None = None

    def __post_init__(self) -> None:
        check_text("Recipe.name", self.name)
        with within("Recipe.policy"):
            object.__setattr__(self, "policy", parse_policy(self.policy))
        if self.scores is not None:
            with within("Recipe.scores"):
                object.__setattr__(self, "scores", parse_scores(self.scores))
        object.__setattr__(self, "prompting", Prompting.parse(self.prompting, "Recipe.prompting"))
        if self.scores is not None and self.fine_tuning is not None:
            raise UserError(
                "Recipe.scores: fine-tuning trains without score modifications, so the weights would not fit them. "
                "Leave out fine_tuning, or scores."
            )
        budget, room = self.prompting.budget, self.decoding.max_new_tokens
        if budget is not None and budget >= room:
            raise UserError(
                f"Recipe.prompting.budget: {budget} tokens of reasoning leave none for the answer: "
                f"decoding.max_new_tokens is {room}. Lower the one or raise the other."
            )

    @property
    def rule(self) -> str:
        """Policy and score modifications as people read them."""
        return repr(self.policy) if self.scores is None else f"{self.policy!r}, scores {self.scores!r}"

    @property
    def hash(self) -> str:
        """SHA-256 of everything but the name, in hexadecimal; equal policies hash equal however they are written."""
        content = {key: value for key, value in self.to_dict().items() if key != "name"}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON and YAML; :meth:`from_dict` reads them back."""
        values: dict[str, object] = {
            "name": self.name,
            "policy": policy_to_dict(self.policy),
            "prompting": self.prompting.to_value(),
            "decoding": self.decoding.to_dict(),
        }
        if self.fine_tuning is not None:  # absent otherwise, so that a model as it is keeps its hash
            values["fine_tuning"] = dataclasses.asdict(self.fine_tuning)
        if self.scores is not None:  # so, too, a model whose scores stay as they are
            values["scores"] = scores_to_list(self.scores)
        return values

    @classmethod
    def from_dict(
        cls,
        values: object,
        *,
        path: str = "recipe",
        decoding: Decoding | None = None,
        fine_tunings: Mapping[str, str] | None = None,
    ) -> Recipe:
        """The recipe that a mapping describes.

        Args:
            values: the fields above; ``decoding`` may be partial, and ``fine_tuning`` is a name.
            path: where the mapping stands in the file, for error messages.
            decoding: what a field of ``decoding`` is where the mapping does not say (default: ``Decoding()``).
            fine_tunings: the digests of the trainings, by name.

        Raises:
            UserError: an unknown, missing or wrong field, named by its dotted path.
        """
        mapping = dict(check_mapping(path, values))
        base = (decoding or Decoding()).to_dict()
        own: Mapping[str, object] = check_mapping(f"{path}.decoding", mapping.get("decoding", {}))
        mapping["decoding"] = build(Decoding, {**base, **own}, f"{path}.decoding")
        if mapping.get("fine_tuning") is not None:
            known = fine_tunings or {}
            name = check_choice(f"{path}.fine_tuning", mapping["fine_tuning"], known)
            mapping["fine_tuning"] = FineTuned(name, known[name])
        return build(cls, mapping, path)
