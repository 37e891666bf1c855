"""Methods for what clients do differently in their steps. One file each."""
