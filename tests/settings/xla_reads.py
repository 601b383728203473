"""What XLA itself makes of texts of XLA_FLAGS: ``python -m tests.settings.xla_reads`` < texts.

Prints for each the folder that ``xla_dump_to`` got, or None where the process ended.
"""

import json
import os
import sys

from jaxlib import xla_client


def read(text):
    """Lets a fork parse the text, which XLA does once in a process."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.environ["XLA_FLAGS"] = text
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 2)
        options = xla_client._xla.CompileOptions()  # it must outlive what is read from it
        folder = options.executable_build_options.debug_options.xla_dump_to
        os.write(writer, json.dumps(folder).encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader) as pipe:
        return json.loads(pipe.read() or "null")


if __name__ == "__main__":
    print(json.dumps([read(text) for text in json.load(sys.stdin)]))
