"""Taking winners elsewhere: bundles of binaries, and source files that need no ksearch."""
