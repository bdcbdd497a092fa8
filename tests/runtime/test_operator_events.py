import re
from pathlib import Path

from rolemesh.runtime.operator_events import OperatorEvent

DOCUMENT = Path(__file__).parents[2] / "docs" / "journal.md"


def test_every_event_has_an_id_of_its_own_which_the_document_lists() -> None:
    listed = dict(
        re.findall(r"^\| `([a-z-]+)` \| `([0-9a-f]{32})` \|", DOCUMENT.read_text(), re.MULTILINE)
    )
    assert listed == {event.label: event.value for event in OperatorEvent}
