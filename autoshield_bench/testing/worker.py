"""The process in which ``isolated`` runs checks: a request on standard input, one JSON line per event on a pipe."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the checks that were asked for, one after the other."""
    request = json.load(sys.stdin)
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as pipe:

        def say(**event: Any) -> None:
            # Counted here: by the time the other process looks, a check that has begun may have printed already.
            printed = 0
            with suppress(Exception):  # a plugin may have closed or replaced what it prints to
                sys.stdout.flush()
                printed = os.fstat(1).st_size
            pipe.write(json.dumps({**event, "printed": printed}) + "\n")
            pipe.flush()

        from autoshield_bench.errors import AubenchError
        from autoshield_bench.registry import Registry
        from autoshield_bench.testing.catalogue import checks_of
        from autoshield_bench.testing.subject import Subject
        from autoshield_bench.testing.world import World

        kind = request["kind"]
        try:
            registry = Registry.discover([Path(file) for file in request["files"]])
            subject = Subject.named(registry, registry.find(kind, request["use"]), request["params"])
        except AubenchError as error:
            say(event="unusable", message=str(error))
            return
        for check in checks_of(kind):
            if check.name not in request["done"]:
                say(event="begin", check=check.name)
                say(event="end", **check.run(subject, World()).to_json())
        say(event="done")


if __name__ == "__main__":
    main()
    # A thread that the plugin left behind must not keep the process.
    os._exit(0)
