"""Builds the documentation site: assembles its pages, generates the reference from the code, and runs zensical."""
