"""Plans for any length: traces whose sizes are formulas of the inputs' sizes, so that a new length needs no trace."""
