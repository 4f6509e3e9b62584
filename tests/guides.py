"""The Python of a page of the guide, run as it stands."""

import re
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).parent.parent / "tutorials" / "guide"


def run_guide(page: str, blocks: int) -> dict[str, Any]:
    """Run the page's blocks one after the other, and return the names that they leave behind."""
    found = re.findall(r"^```python\n(.*?)^```$", (GUIDE / page).read_text(encoding="utf-8"), re.M | re.S)
    assert len(found) == blocks
    names: dict[str, Any] = {}
    for block in found:
        exec(block, names)
    return names
