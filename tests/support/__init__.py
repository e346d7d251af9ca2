"""What tests of several folders share: corpora, examples, tolerances."""
