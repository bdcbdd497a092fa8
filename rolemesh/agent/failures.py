"""How soon a model whose load failed may be tried again; pure bookkeeping over a given clock."""

from dataclasses import dataclass

from rolemesh.names import ModelId

FIRST_RETRY_S = 10.0
LONGEST_RETRY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The last failed load of a model; `serial` grows with each failure of any model."""

    reason: str
    serial: int
    backoff_s: float
    retry_at: float


class Failures:
    """The failed loads of all models; a load that succeeds forgets the model's failures."""

    def __init__(self) -> None:
        self._failures: dict[ModelId, Failure] = {}
        self.serial = 0

    def record(self, model_id: ModelId, reason: str, *, now: float) -> None:
        """Note a failed load; each one in a row doubles the wait before the next try."""
        before = self._failures.get(model_id)
        backoff_s = min(before.backoff_s * 2, LONGEST_RETRY_S) if before else FIRST_RETRY_S
        self.serial += 1
        self._failures[model_id] = Failure(
            reason=reason, serial=self.serial, backoff_s=backoff_s, retry_at=now + backoff_s
        )

    def forget(self, model_id: ModelId) -> None:
        """Note that the model loaded, or that its settings changed."""
        self._failures.pop(model_id, None)

    def of(self, model_id: ModelId) -> Failure | None:
        """Return the model's last failure if no load succeeded since."""
        return self._failures.get(model_id)
