"""Figures for the page and for papers: one look, drawn once, shown on light and dark grounds."""
