"""What one forward pass sees: the one shape that data makes, engines move and objectives read."""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reference:
    """What the base predicts at some of a batch's supervised tokens: its likeliest next tokens, the others as one.

    `rows` [n]: places among the batch's `taught`. `ids`, `logs` [n, top]: tokens and the logarithms of their
    probabilities; `rest` [n]: that of the probability of all other tokens together.
    """

    rows: Tensor
    ids: Tensor
    logs: Tensor
    rest: Tensor
    weight: float
    """Sum of the weights of these tokens."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass: `ids`, `labels`, `weights` [rows, tokens]; an empty batch is one unsupervised token.

    Examples lie padded to the right, or several in one row (`packed`). `positions` [rows, tokens] restart at each
    example if packed, and are None if padded, where plain causal attention needs neither positions nor a mask:
    padding comes last and is seen by no token before it. `taught`: indices of the supervised tokens in the
    flattened batch, known on the host so that nobody waits for the device to find them.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    positions: Tensor | None
    taught: Tensor
    examples: tuple[int, ...]
    lengths: tuple[int, ...]
    weight: float
    """Sum of the weights of the supervised tokens: the denominator of their mean loss."""
    reference: Reference | None = None
    """What the base predicts, where the model is compared with it."""
    bounds: Tensor | None = None
    """Where rows, or examples if packed, begin and end in the flattened batch [n + 1], int32: what kernels of varying
    lengths read in place of a mask."""

    @property
    def longest(self) -> int:
        """Tokens of the longest of what `bounds` tells apart."""
        return self.ids.shape[1] if self.positions is None else max(self.lengths, default=1)

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(self.lengths)

    @property
    def supervised(self) -> int:
        """Tokens that carry loss."""
        return len(self.taught)

    def to(self, device: str) -> "Batch":
        """The same batch on a device; the batch itself if that is the host, where it is made."""
        if device == "cpu":
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        base = self.reference
        if base is not None:
            rows, ids, logs, rest = map(moved, (base.rows, base.ids, base.logs, base.rest))
            base = Reference(rows, ids, logs, rest, base.weight)
        return replace(
            self,
            reference=base,
            ids=moved(self.ids),
            labels=moved(self.labels),
            weights=moved(self.weights),
            positions=None if self.positions is None else moved(self.positions),
            taught=moved(self.taught),
            bounds=None if self.bounds is None else moved(self.bounds),
        )
