"""What is to be merged: preflight checks and the plan. Headers only; nothing here reads a weight or imports torch."""
