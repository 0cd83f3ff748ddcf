"""Tools to test an implementation against the specification: error budgets, problems, strategies.

:mod:`flashlla.testing.numerics` says how wrong a result may be, :mod:`flashlla.testing.problems` makes data
that is hard in known ways, and :mod:`flashlla.testing.strategies` (needs hypothesis) draws random calls.
"""
