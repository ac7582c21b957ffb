"""Reads the text of a PDF file; run as a program, because a hostile file can take any time and memory.

The file imports nothing of freedive. argv[1] is the folder of pypdf, argv[2] the most characters of text. The file
comes on standard input; on standard output goes a JSON object with the "text" or the "fault".
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from typing import Any

CPU_S = 20
"""CPU seconds that a file may take."""
MAX_MEMORY = 1 << 30
"""The limit of the process's address space in bytes."""


def read(data: bytes, max_chars: int) -> dict[str, str]:
    """Returns the text of a file, its pages separated by empty lines, or a fault: encrypted, damaged, long or empty."""
    from pypdf import PdfReader

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return {"fault": "encrypted"}
        return _text(reader, max_chars)
    except MemoryError:
        return {"fault": "long"}
    except Exception as error:  # the library has many for damaged files, and encryptions that it cannot read
        return {"fault": "encrypted" if "rypt" in type(error).__name__ + str(error) else "damaged"}


def _text(reader: Any, max_chars: int) -> dict[str, str]:
    pages, left = [], max_chars
    for page in reader.pages:
        text = page.extract_text().strip()
        left -= len(text) + 2
        if left < 0:
            return {"fault": "long"}
        pages.append(text)
    whole = "\n\n".join(filter(None, pages))
    return {"text": whole} if whole else {"fault": "empty"}


def main() -> None:
    """Runs the program within its limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    sys.path.insert(0, sys.argv[1])
    answer = read(sys.stdin.buffer.read(), int(sys.argv[2]))
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
