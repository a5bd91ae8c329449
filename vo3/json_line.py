"""JSON on one line, readable where UTF-8 can hold it.

Half a surrogate pair, which broken escapes leave in questions and replies, has no UTF-8: `json.dumps(..., ensure_ascii=False)` passes it on and the file refuses it.
"""

from __future__ import annotations

import json
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` with its options; characters stand as they are, or escaped, all of them, where UTF-8 cannot hold one. Read back it is the same value."""
    line = json.dumps(value, ensure_ascii=False, **options)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(value, **options)
    return line
