"""Contenders of `./bazelw run //tools/bench:train`: programs that do the same in other ways, and say what it cost."""
