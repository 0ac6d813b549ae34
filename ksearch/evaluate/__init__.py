"""Is a candidate right, and how fast is it: compile pool, isolated worker, check, timing.

Nothing is imported here, because a child process imports one module of this folder and starts in
0.1 s only if the others (and torch) stay out of it.
"""
