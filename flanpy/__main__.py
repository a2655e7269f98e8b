"""``python -m flanpy`` is the same as ``flanpy``."""

from flanpy.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
