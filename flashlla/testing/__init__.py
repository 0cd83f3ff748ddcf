"""Tools to test an implementation against the specification: error budgets, problems, strategies.

:mod:`flashlla.testing.numerics` says how wrong a result may be, :mod:`flashlla.testing.problems` makes data
that is hard in known ways, :mod:`flashlla.testing.cases` holds a backend to the budgets on them,
:mod:`flashlla.testing.strategies` (needs hypothesis) draws random calls, and
:mod:`flashlla.testing.offline` compiles Triton kernels for a GPU that is not there.
"""
