"""What the experiments share: descriptions, sweeps, tables, statistics, claims, figures, the report."""
